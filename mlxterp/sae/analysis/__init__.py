"""What the features of an SAE do: activity, effects, attribution, circuits, interventions."""
