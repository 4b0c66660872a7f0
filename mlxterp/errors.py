"""Every error this library raises on purpose.

A message has three parts: what was asked, what is there, what to do. It repeats the caller's values.

    MlxterpError
    ├── ModelError
    │   ├── ModelNotFound          no such bundled model, path or hub id; or it could not be fetched
    │   ├── TermsNotAccepted       a model with terms that nobody has agreed to on this machine
    │   ├── UnsupportedArchitecture  the module has no layers we know how to read
    │   ├── DeviceDisagrees        the GPU's logits are not the CPU's
    │   └── CapabilityUnavailable  this model lacks the hook point or method, or it failed its check at load
    ├── HookError
    │   ├── UnknownHookPoint       a name that is not in the vocabulary, or a layer that does not exist
    │   ├── MissingActivation      the trace did not capture the requested activation
    │   │   └── MissingAttribute   the same, requested as an attribute; also an AttributeError
    │   └── InterventionNotFired   an intervention that changed nothing because its hook never ran
    ├── TokenError                 a text that is not one token, a position out of range
    ├── PromptPairError
    │   ├── LengthMismatch         clean and corrupted have different numbers of tokens and no alignment
    │   └── NoGap                  clean and corrupted give the same metric: nothing to recover
    ├── SweepError                 a sweep over axes or components that do not go together
    ├── LensError                  a tuned lens of another model, a file without one, or nothing to train on
    ├── MetricError                an unknown metric, or one whose arguments are missing
    ├── NotFinite                  NaN or infinity in logits, activations, gradients or effects; names where
    ├── StatisticsError            numbers from which a statistic cannot be computed
    ├── ResultError                a result that cannot be read back, or a component that is not in it
    ├── SettingError               an environment variable with an invalid value
    ├── SAEError                   an SAE whose shapes or options do not go together
    │   ├── SAEFormatError         a file that is in no known SAE format
    │   └── TooLittleData          fewer tokens than the training asked for needs
    ├── StoreError                 a feature store that does not exist, does not fit, or lacks the request
    ├── LabelingError              features that cannot be labelled as requested, or an unreadable label
    ├── LlmError
    │   ├── LlmUnavailable         no API key, or the anthropic package is missing
    │   ├── LlmRejected            the service will never answer this request: key, model, size
    │   ├── LlmAway                the service was unavailable through every retry
    │   ├── LlmBudgetReached       the next call could cost more than max_usd leaves
    │   └── ReplyCacheError        a file that is not a reply cache, or cannot be written
    └── ContractError
        ├── ScaffoldError          a directory that exists, an unknown scaffold
        ├── PromptFileError        a file of prompt pairs that cannot be read, or of no use to the model
        ├── ProjectError           a directory that is not an investigation, or that lacks files
        ├── CorruptLog             a line of results.jsonl that cannot be read
        ├── EntryError             an ExperimentEntry with a field of the wrong type
        ├── DeclarationError       a HYPOTHESIS that is not a literal declaration
        ├── UnknownMetricName      a name the MetricRegistry does not hold
        ├── OutboxClosed           the pipe to the supervisor is closed
        └── BudgetReached          no experiment is left in the budget

Warnings, for results or speed that could be better:

    MlxterpWarning
    ├── SlowWeights                quantised or 16-bit weights where MLX computes on a CPU
    ├── SlowBlas                   MLX on this Linux computes with the reference BLAS
    ├── PositionsAligned           prompts of different lengths, compared by a stated map
    ├── SlowSweep                  this architecture needs a whole forward per patch
    ├── OfflineLabels              labels by a language model were requested, but there is no key
    ├── DeprecatedModel            a model whose service ends or has ended
    ├── PromptNotCached            instructions sent again and again, never read from the service's cache
    ├── SAEMismatch                an SAE trained on another model, or with other model settings
    ├── TrainingTexts              a label is tested on texts that it was made from
    ├── UnderTrained               an SAE that was still improving fast when its training ended
    └── TornTail                   the last line of results.jsonl was cut off by a crash
"""

from __future__ import annotations


class MlxterpError(Exception):
    """Base of every error raised on purpose."""


class ModelError(MlxterpError):
    """Something about loading or describing a model."""


class ModelNotFound(ModelError):
    """No bundled model, path or hub id has this name."""


class TermsNotAccepted(ModelError):
    """The model is fetched for those who agree to its terms, and nobody has on this machine."""


class UnsupportedArchitecture(ModelError):
    """The module has no list of layers that can be hooked."""


class DeviceDisagrees(ModelError):
    """The GPU computes other logits than the CPU for the same tokens."""


class CapabilityUnavailable(ModelError):
    """This model does not have the hook point or property, or it failed its check at load."""


class HookError(MlxterpError):
    """Something about hook points and interventions."""


class UnknownHookPoint(HookError):
    """The name is not a hook point, or the layer does not exist."""


class MissingActivation(HookError):
    """The trace did not capture this hook point."""


class MissingAttribute(MissingActivation, AttributeError):
    """An attribute of a trace that was not captured; lists the captured ones."""


class InterventionNotFired(HookError):
    """An intervention whose hook never ran: nothing was changed."""


class TokenError(MlxterpError):
    """A text that is not one token, or a position that does not exist."""


class PromptPairError(MlxterpError):
    """Clean and corrupted prompts that cannot be compared."""


class LengthMismatch(PromptPairError):
    """Clean and corrupted prompts have different numbers of tokens."""


class NoGap(PromptPairError):
    """Clean and corrupted runs give the same metric: there is nothing to recover."""


class SweepError(MlxterpError):
    """A sweep, ablation or set of heads that is not defined for this component or model."""


class LensError(MlxterpError):
    """A tuned lens of another model, a file without one, or texts it cannot be trained on."""


class MetricError(MlxterpError):
    """An unknown metric, or one whose arguments are missing."""


class NotFinite(MlxterpError):
    """Some of the numbers asked for are NaN or infinite: nothing is reported, and the sites are named."""


class StatisticsError(MlxterpError):
    """Numbers from which the statistic that was asked for cannot be computed; says which and where."""


class ResultError(MlxterpError):
    """A result that cannot be read back, or a component it does not hold."""


class SettingError(MlxterpError):
    """An environment variable of this library holds an invalid value."""


class SAEError(MlxterpError):
    """An SAE whose weights do not fit each other or the model, or options that do not go together."""


class SAEFormatError(SAEError):
    """A file that is in no known SAE format; lists its contents and the known formats."""


class TooLittleData(SAEError):
    """Fewer tokens than are needed: no SAE is returned rather than an untrained one."""


class LlmError(MlxterpError):
    """A language model behind an API gave no reply; an unusable reply is never an error."""


class LlmUnavailable(LlmError):
    """There is no API key, or the anthropic package is not installed."""


class LlmRejected(LlmError):
    """The service refused the request for good: wrong key or model, too large, or not paid for.

    Attributes:
        status: of the answer, such as 401; None where there was none.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class LlmAway(LlmError):
    """The service was overloaded or unreachable through every retry."""


class LlmBudgetReached(LlmError):
    """The next call could cost more than `max_usd` leaves; it was not made."""


class ReplyCacheError(LlmError):
    """The file of cached replies cannot be opened, read or written."""


class StoreError(MlxterpError):
    """A feature store that does not exist, does not fit the SAE, or lacks the requested features."""


class LabelingError(MlxterpError):
    """Features that cannot be labelled as requested, or a label that cannot be read."""


class ContractError(MlxterpError):
    """Something about the files of an investigation."""


class ScaffoldError(ContractError):
    """A scaffold that cannot be written: the directory is not empty, or the name is unknown."""


class PromptFileError(ContractError):
    """A file of prompt pairs that cannot be read, with its line; or pairs that this model cannot be asked."""


class ProjectError(ContractError):
    """A directory that is not an investigation, or whose files are missing or unusable."""


class CorruptLog(ContractError):
    """A line of results.jsonl that cannot be read; names the file and the line."""


class EntryError(ContractError, TypeError):
    """An ExperimentEntry, or an argument of the log, with a value of the wrong type."""


class DeclarationError(ContractError):
    """A HYPOTHESIS that is not a literal declaration; names the line and what to write."""


class UnknownMetricName(ContractError):
    """A name that the MetricRegistry does not hold; lists those it does."""


class OutboxClosed(ContractError):
    """The pipe on which the supervisor expects entries does not exist, or is closed."""


class BudgetReached(ContractError):
    """Every experiment of the budget has been run."""


class MlxterpWarning(UserWarning):
    """Base of every warning given on purpose."""


class SlowWeights(MlxterpWarning):
    """Quantised or 16-bit weights are kept where MLX has no GPU and multiplies them slowly."""


class SlowBlas(MlxterpWarning):
    """MLX computes with the reference BLAS, and no faster one could be loaded."""


class UnderTrained(MlxterpWarning):
    """An SAE was still improving fast when its training ended: more tokens or another learning rate."""


class SAEMismatch(MlxterpWarning):
    """An SAE is used on another model than it was trained on, or with other settings of that model."""


class TrainingTexts(MlxterpWarning):
    """A label is tested on texts that it was made from: a pass there says little about other texts."""


class TornTail(MlxterpWarning):
    """The last line of results.jsonl was cut off by a crash, and has been set aside."""


class PositionsAligned(MlxterpWarning):
    """Prompts of different lengths are compared by a stated map of positions."""


class OfflineLabels(MlxterpWarning):
    """Labels by a language model were requested, but there is no key: rules label instead."""


class DeprecatedModel(MlxterpWarning):
    """The service of the requested model ends, or has ended."""


class PromptNotCached(MlxterpWarning):
    """The same instructions were sent many times and paid in full each time."""


class SlowSweep(MlxterpWarning):
    """Every patch of a sweep costs a whole forward: rows cannot join a running batch of this architecture."""
