"""Facts: a prompt names a subject and continues with its attribute, such as a landmark's city."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest

import numpy as np

from mlxterp.causal.batching import sweep
from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets.selection import is_one_word, row_of, rows_of
from mlxterp.errors import PromptPairError

Fact = tuple[str, str]
"""A subject and its attribute."""


def _parse_facts(table: str) -> tuple[Fact, ...]:
    """The facts of a table `attribute: subject, subject; attribute: …`: first subjects, then second ones.

    Two facts with the same attribute make no pair, so neighbours have different ones.
    """
    rows = [row.split(": ") for row in " ".join(table.split()).split("; ")]
    columns = zip_longest(*(subjects.split(", ") for _, subjects in rows))
    attributes = [attribute for attribute, _ in rows]
    return tuple(
        (s, a) for column in columns for s, a in zip(column, attributes, strict=True) if s is not None
    )


LANDMARKS: tuple[Fact, ...] = _parse_facts("""
Paris: Eiffel Tower, Sorbonne, Moulin Rouge, Louvre, Arc de Triomphe, Champs-Elysees, Musee d'Orsay,
  Pompidou Centre, Tuileries Garden, Luxembourg Gardens, Sainte-Chapelle, Place de la Concorde, Pont Neuf,
  Les Invalides, Gare du Nord, Palais Garnier, Folies Bergere;
Rome: Colosseum, Sistine Chapel, Trevi Fountain, Roman Forum, Spanish Steps, Villa Borghese, Piazza Navona,
  Castel Sant'Angelo, Circus Maximus, Baths of Caracalla, Borghese Gallery, Capitoline Hill, Palatine Hill,
  Quirinal Palace, Arch of Constantine, Trajan's Column;
Berlin: Brandenburg Gate, Reichstag, Checkpoint Charlie, Pergamon Museum, Charlottenburg Palace,
  Alexanderplatz, Potsdamer Platz, Tempelhof Airport, Bundestag, Humboldt University;
Madrid: Prado Museum, Reina Sofia Museum, Puerta del Sol, Santiago Bernabeu Stadium, Retiro Park, Puerta de
  Alcala, Barajas Airport;
Athens: Parthenon, Acropolis, Syntagma Square, Erechtheion, Panathenaic Stadium, Temple of Olympian Zeus,
  Temple of Hephaestus, Theatre of Dionysus, Areopagus;
Istanbul: Hagia Sophia, Grand Bazaar, Blue Mosque, Topkapi Palace, Galata Tower, Dolmabahce Palace, Taksim
  Square, Bosphorus Bridge, Suleymaniye Mosque;
Vienna: Hofburg Palace, Schonbrunn Palace, Belvedere Palace, Prater, Albertina Museum, Kunsthistorisches
  Museum, Ringstrasse, Burgtheater, Musikverein;
Amsterdam: Van Gogh Museum, Rijksmuseum, Anne Frank House, Dam Square, Concertgebouw, Vondelpark, Stedelijk
  Museum, Heineken Experience;
Milan: La Scala, San Siro Stadium, Sforza Castle, Galleria Vittorio Emanuele, Pinacoteca di Brera, Bocconi
  University;
Beijing: Forbidden City, Tiananmen Square, Temple of Heaven, Bird's Nest Stadium, Great Hall of the People,
  Peking University, Tsinghua University;
Shanghai: Oriental Pearl Tower, Bund, Jin Mao Tower, Pudong Airport, Fudan University, Nanjing Road;
Moscow: Kremlin, Red Square, Bolshoi Theatre, St Basil's Cathedral, Tretyakov Gallery, Lenin Mausoleum,
  Gorky Park, Pushkin Museum, Luzhniki Stadium, State Duma, Ostankino Tower;
London: British Museum, Globe Theatre, Buckingham Palace, Big Ben, Tower Bridge, Trafalgar Square,
  Westminster Abbey, Piccadilly Circus, Abbey Road Studios, Tate Modern, Shard, Wembley Stadium, Kensington
  Palace, Royal Albert Hall, Heathrow Airport, Covent Garden, Cutty Sark, Old Bailey, Palace of Westminster,
  Tate Britain, Leicester Square, Nelson's Column;
Chicago: Willis Tower, Wrigley Field, Navy Pier, Field Museum, Millennium Park, O'Hare Airport, Soldier
  Field, John Hancock Center, Adler Planetarium, United Center, Midway Airport, DePaul University;
Washington: White House, Lincoln Memorial, Library of Congress, Smithsonian Institution, Jefferson Memorial,
  Vietnam Veterans Memorial, National Mall, Georgetown University, Howard University, Kennedy Center,
  Watergate Complex, US Capitol;
Jerusalem: Western Wall, Dome of the Rock, Al-Aqsa Mosque, Church of the Holy Sepulchre, Knesset, Yad
  Vashem, Via Dolorosa, Mount of Olives, Temple Mount, Garden of Gethsemane, Israel Museum, Wailing Wall,
  Hebrew University;
Sydney: Harbour Bridge, Bondi Beach, Taronga Zoo, Darling Harbour, Circular Quay;
Barcelona: Sagrada Familia, Park Guell, Camp Nou, La Rambla, Casa Batllo, Casa Mila, Gothic Quarter,
  Montjuic Castle;
Venice: Rialto Bridge, St Mark's Basilica, Doge's Palace, Bridge of Sighs, Peggy Guggenheim Collection, La
  Fenice, St Mark's Square;
Dubai: Burj Khalifa, Burj Al Arab, Palm Jumeirah;
Florence: Uffizi Gallery, Ponte Vecchio, Pitti Palace, Boboli Gardens, Basilica of Santa Croce, Palazzo
  Vecchio, Bargello;
Tokyo: Shibuya Crossing, Meiji Shrine, Senso-ji Temple, Skytree, Ginza, Tsukiji Market, Haneda Airport, Ueno
  Park, Akihabara, Yasukuni Shrine;
Kyoto: Golden Pavilion, Fushimi Inari Shrine, Nijo Castle, Kinkaku-ji, Kiyomizu-dera;
Delhi: Red Fort, Qutub Minar, India Gate, Lotus Temple, Jama Masjid, Humayun's Tomb, Chandni Chowk;
Mumbai: Gateway of India, Taj Mahal Palace Hotel, Haji Ali Dargah, Wankhede Stadium, Siddhivinayak Temple;
Cairo: Egyptian Museum, Tahrir Square, Al-Azhar Mosque, Khan el-Khalili, Al-Azhar University;
Tehran: Azadi Tower, Milad Tower, Golestan Palace;
Prague: Charles Bridge, Wenceslas Square, Old New Synagogue, St Vitus Cathedral, Charles University;
Budapest: Chain Bridge, Fisherman's Bastion, Szechenyi Baths, Matthias Church;
Dublin: Guinness Storehouse, Temple Bar, Ha'penny Bridge, Abbey Theatre, Croke Park, O'Connell Street;
Lisbon: Belem Tower, Jeronimos Monastery, Alfama, Vasco da Gama Bridge;
Stockholm: Vasa Museum, Gamla Stan, Skansen, Nobel Museum;
Oslo: Vigeland Park, Munch Museum, Akershus Fortress, Holmenkollen, Nobel Peace Center;
Copenhagen: Little Mermaid, Tivoli Gardens, Nyhavn, Christiansborg Palace, Rosenborg Castle;
Brussels: Atomium, Manneken Pis, Grand Place, Berlaymont building;
Munich: Hofbrauhaus, Marienplatz, Nymphenburg Palace, Allianz Arena, Deutsches Museum, Alte Pinakothek;
Hamburg: Elbphilharmonie, Reeperbahn, Speicherstadt;
Toronto: CN Tower, Rogers Centre, Casa Loma, Royal Ontario Museum, Hockey Hall of Fame;
Montreal: Mount Royal, McGill University, Saint Joseph's Oratory;
Boston: Fenway Park, Freedom Trail, Faneuil Hall, Old North Church, Logan Airport, Bunker Hill Monument,
  Paul Revere House, Isabella Stewart Gardner Museum, Northeastern University;
Philadelphia: Liberty Bell, Independence Hall, Barnes Foundation, Betsy Ross House, Drexel University,
  Franklin Institute;
Seattle: Space Needle, Pike Place Market, Museum of Pop Culture;
Houston: Johnson Space Center, Astrodome, Rice University;
Dallas: Dealey Plaza, Reunion Tower, Southern Methodist University;
Atlanta: Georgia Aquarium, World of Coca-Cola, Centennial Olympic Park, Emory University, Spelman College;
Detroit: Motown Museum, Comerica Park, Ford Field, Wayne State University;
Memphis: Graceland, Beale Street, Sun Studio, Lorraine Motel;
Nashville: Grand Ole Opry, Ryman Auditorium, Country Music Hall of Fame, Vanderbilt University;
Pittsburgh: Andy Warhol Museum, Heinz Field, Carnegie Mellon University;
Baltimore: Fort McHenry, Camden Yards, Johns Hopkins University;
Cleveland: Rock and Roll Hall of Fame, Progressive Field;
Liverpool: Cavern Club, Anfield, Albert Dock, Goodison Park, Penny Lane;
Manchester: Old Trafford, Etihad Stadium, John Rylands Library, Free Trade Hall;
Edinburgh: Royal Mile, Holyrood Palace, Arthur's Seat, Scott Monument, Murrayfield Stadium;
Glasgow: Kelvingrove Museum, Celtic Park, Ibrox Stadium, Hampden Park;
Oxford: Bodleian Library, Ashmolean Museum, Radcliffe Camera, Balliol College, Magdalen College;
Cambridge: Fitzwilliam Museum, Cavendish Laboratory, Massachusetts Institute of Technology, Harvard
  University;
Melbourne: Federation Square, Flinders Street Station, Monash University;
Singapore: Marina Bay Sands, Raffles Hotel, Changi Airport, Gardens by the Bay;
Seoul: Gyeongbokgung Palace, Lotte World Tower, Namdaemun Gate;
Mecca: Kaaba, Masjid al-Haram;
Naples: Teatro di San Carlo, Castel Nuovo, Capodimonte Museum;
Dresden: Zwinger Palace, Semperoper;
Warsaw: Palace of Culture and Science, Wilanow Palace;
Ottawa: Parliament Hill, Rideau Hall;
Hiroshima: Atomic Bomb Dome, Peace Memorial Park
""")
"""Landmarks and institutions, and their cities; no subject's name holds its city's.

SmolLM2-135M, after `The {} is located in the city of`: the city is its first token for 29 % of them and among
the first ten for 68 %; of couples in the order of the list it prefers the right city twice in 83 %. `shown`
leaves out the others. There are 54 couples of the commonest token length and 188 of all.
"""

_CAPITALS = """
France = Paris, Italy = Rome, Germany = Berlin, Spain = Madrid, Greece = Athens, Austria = Vienna, China =
Beijing, Japan = Tokyo, Russia = Moscow, Poland = Warsaw, Ireland = Dublin, Portugal = Lisbon, Sweden =
Stockholm, Norway = Oslo, Egypt = Cairo, Iraq = Baghdad, Iran = Tehran, Cuba = Havana, Canada = Ottawa,
Kenya = Nairobi, India = Delhi, Turkey = Ankara, Thailand = Bangkok, Syria = Damascus, Hungary = Budapest,
Lebanon = Beirut, Finland = Helsinki, Denmark = Copenhagen, Belgium = Brussels, the Netherlands =
Amsterdam, the Czech Republic = Prague, the United Kingdom = London, the United States = Washington,
Australia = Canberra, New Zealand = Wellington, South Korea = Seoul, the Philippines = Manila, Bulgaria =
Sofia, Romania = Bucharest, Ukraine = Kiev, Serbia = Belgrade, Croatia = Zagreb, Peru = Lima, Chile =
Santiago, Colombia = Bogota, Afghanistan = Kabul, Saudi Arabia = Riyadh, Vietnam = Hanoi, Indonesia =
Jakarta, Nepal = Kathmandu, Pakistan = Islamabad, Libya = Tripoli, Jamaica = Kingston, Scotland =
Edinburgh, Wales = Cardiff, Northern Ireland = Belfast, England = London, Texas = Austin, Massachusetts =
Boston, Colorado = Denver, Tennessee = Nashville, Ohio = Columbus, Arizona = Phoenix, Hawaii = Honolulu,
California = Sacramento, Wisconsin = Madison, Virginia = Richmond, Maryland = Annapolis, Oregon = Salem,
Maine = Augusta, Connecticut = Hartford, Rhode Island = Providence, Pennsylvania = Harrisburg, New York =
Albany, Alabama = Montgomery, Mississippi = Jackson, Illinois = Springfield, Nebraska = Lincoln, North
Carolina = Raleigh, South Carolina = Columbia, Delaware = Dover, New Hampshire = Concord, Montana = Helena,
West Virginia = Charleston, Idaho = Boise, Michigan = Lansing, Ontario = Toronto, British Columbia =
Victoria, Alberta = Edmonton, Manitoba = Winnipeg, Nova Scotia = Halifax, Queensland = Brisbane, New South
Wales = Sydney, Western Australia = Perth, South Australia = Adelaide, Tasmania = Hobart, Bavaria = Munich,
Catalonia = Barcelona, Andalusia = Seville, Tuscany = Florence, Lombardy = Milan, Piedmont = Turin, Veneto
= Venice, Campania = Naples, Sicily = Palermo, Saxony = Dresden, Prussia = Berlin, Flanders = Brussels,
Bengal = Calcutta, Switzerland = Bern, Maharashtra = Mumbai, Tamil Nadu = Chennai, Qatar = Doha, Sudan =
Khartoum, Slovakia = Bratislava, Morocco = Rabat, Jordan = Amman, Venezuela = Caracas, Ecuador = Quito,
Uruguay = Montevideo
"""
CAPITALS: tuple[Fact, ...] = tuple(
    (subject, capital)
    for subject, _, capital in (fact.partition(" = ") for fact in " ".join(_CAPITALS.split()).split(", "))
)
"""Countries, states and regions, and their capitals; no subject's name holds its capital's.

SmolLM2-135M has one token for 90 of them: the capital is its first token for 73 % and among the first ten
for 95 %. There are 33 couples of the commonest token length and 45 of all.
"""

LANGUAGES: tuple[Fact, ...] = _parse_facts("""
French: France, Quebec, Paris, Lyon, Marseille, Normandy, Bordeaux, Toulouse, Nantes;
Italian: Italy, Rome, Milan, Florence, Naples, Venice, Tuscany, Bologna, Genoa;
German: Austria, Bavaria, Berlin, Vienna, Munich, Hamburg, Frankfurt, Saxony, Dresden, Cologne, Leipzig;
Spanish: Spain, Mexico, Argentina, Cuba, Chile, Peru, Colombia, Venezuela, Ecuador, Uruguay, Guatemala,
  Honduras, Nicaragua, Costa Rica, Panama, El Salvador, Madrid, Seville, Havana, Lima, Bogota, Buenos Aires;
Greek: Greece, Athens, Crete;
Japanese: Japan, Tokyo, Kyoto, Osaka, Hiroshima, Nagasaki, Yokohama;
Chinese: China, Beijing, Shanghai, Wuhan, Nanjing;
Russian: Russia, Moscow, Siberia, Saint Petersburg, Vladivostok;
Polish: Poland, Warsaw, Krakow;
Portuguese: Portugal, Brazil, Lisbon, Porto, Rio de Janeiro, Sao Paulo;
Swedish: Sweden, Stockholm, Gothenburg;
Norwegian: Norway, Oslo, Bergen;
Turkish: Turkey, Istanbul, Ankara, Izmir;
Persian: Iran, Tehran, Isfahan;
Hungarian: Hungary, Budapest;
Danish: Denmark, Copenhagen, Aarhus;
Finnish: Finland, Helsinki;
Dutch: the Netherlands, Amsterdam, Rotterdam, Utrecht;
Romanian: Romania, Bucharest, Transylvania;
Bulgarian: Bulgaria;
Ukrainian: Ukraine;
Vietnamese: Vietnam, Hanoi;
Korean: South Korea, North Korea, Seoul, Busan;
Hebrew: Israel, Tel Aviv;
Arabic: Egypt, Saudi Arabia, Syria, Iraq, Libya, Algeria, Tunisia, Jordan, Lebanon, Yemen, Oman, Kuwait,
  Qatar, Cairo, Baghdad, Damascus, Beirut, Mecca;
Indonesian: Indonesia, Jakarta;
Icelandic: Iceland, Reykjavik;
English: Australia, England, the United States, Barbados, London, Chicago, Boston, Sydney, Melbourne,
  Manchester, Texas, California;
Khmer: Cambodia;
Mongolian: Mongolia;
Armenian: Armenia;
Albanian: Albania;
Serbian: Serbia, Belgrade;
Croatian: Croatia, Zagreb;
Lithuanian: Lithuania;
Bengali: Bangladesh, Dhaka;
Urdu: Pakistan
""")
"""Places and the language that most people there speak; no place's name holds its language's.

SmolLM2-135M, after `The people of {} speak`: the language is its first token for 40 % and among the first ten
for 85 %. There are 58 couples of the commonest token length and 78 of all.
"""


def factual_recall_pairs(
    model: InterpretableModel,
    facts: Iterable[Fact] = LANDMARKS,
    *,
    template: str | Sequence[str] = "The {} is located in the city of",
    shown: bool = True,
    one_length: bool = True,
    both_directions: bool = True,
) -> list[PromptPair]:
    """Pairs that differ in the subject only (Eiffel Tower, Colosseum).

    Couples are made of subjects whose prompts have the same number of tokens, and do not share subjects. Each
    is one cluster: its two pairs (Eiffel Tower / Colosseum and Colosseum / Eiffel Tower) share their runs, so
    there are half as many independent clusters as pairs. Costs one forward per subject of the lengths that
    are tried.

    Args:
        facts: subject and attribute; an attribute that is not one token (with its leading space) is left out.
        template: `{}` stands for the subject; the attribute follows the prompt's last token. Several take
            turns, so that each couple has one of them, and a pair's `slice` is its template. Pairs of another
            template are of the same cluster where they are of the same couple.
        shown: leave out couples that the model does not distinguish; False to measure how many it does.
        one_length: only the token length with the most couples, which one call can measure; False pools all
            lengths (`by_length`).
        both_directions: two pairs of each couple; False gives the first of them. In both directions denoising
            and noising are the same measurement, so they are no two methods.

    Raises:
        PromptPairError: there are not two subjects of one length that the model distinguishes.
    """
    templates = (template,) if isinstance(template, str) else tuple(template)
    usable = [fact for fact in facts if is_one_word(model, fact[1])]
    lengths: dict[int, dict[str, list[Fact]]] = defaultdict(lambda: {each: [] for each in templates})
    for i, fact in enumerate(usable):
        its = templates[i % len(templates)]
        if (tokens := row_of(model, its.format(fact[0]))) is not None:
            lengths[tokens.shape[1]][its].append(fact)
    found: list[list[PromptPair]] = []
    for group in sorted(lengths.values(), key=_most_couples, reverse=True):
        if one_length and _most_couples(group) <= len(found):
            continue
        of_template = [_make_couples(model, group[each], each, shown=shown) for each in templates]
        couples = [couple for turn in zip_longest(*of_template) for couple in turn if couple is not None]
        found = max(found, couples, key=len) if one_length else found + couples
    if not found:
        raise PromptPairError(
            f"{model.name} distinguishes no two of these {len(usable)} subjects with the same number of "
            f"tokens in {' or '.join(map(repr, templates))}. Give other facts or another template, or a "
            "model that knows them."
        )
    return [pair for couple in found for pair in couple[: 2 if both_directions else 1]]


def capitals_pairs(
    model: InterpretableModel,
    facts: Iterable[Fact] = CAPITALS,
    *,
    template: str | Sequence[str] = "The capital of {} is the city of",
    shown: bool = True,
    one_length: bool = True,
    both_directions: bool = True,
) -> list[PromptPair]:
    """Pairs that differ in the country only (France, Italy): `factual_recall_pairs` of `CAPITALS`."""
    return factual_recall_pairs(
        model,
        facts,
        template=template,
        shown=shown,
        one_length=one_length,
        both_directions=both_directions,
    )


def languages_pairs(
    model: InterpretableModel,
    facts: Iterable[Fact] = LANGUAGES,
    *,
    template: str | Sequence[str] = "The people of {} speak",
    shown: bool = True,
    one_length: bool = True,
    both_directions: bool = True,
) -> list[PromptPair]:
    """Pairs that differ in the place only (France, Japan): `factual_recall_pairs` of `LANGUAGES`."""
    return factual_recall_pairs(
        model,
        facts,
        template=template,
        shown=shown,
        one_length=one_length,
        both_directions=both_directions,
    )


def _most_couples(group: Mapping[str, Sequence[Fact]]) -> int:
    """How many couples the subjects of one length make at most, each within its template."""
    return sum(len(facts) // 2 for facts in group.values())


def _make_couples(
    model: InterpretableModel, facts: Sequence[Fact], template: str, *, shown: bool
) -> list[list[PromptPair]]:
    """Disjoint couples of facts with different attributes, each as two pairs."""
    if len(facts) < 2:
        return []
    prompts = [template.format(subject) for subject, _ in facts]
    tokens = np.array([model.to_single_token(f" {attribute}") for _, attribute in facts])
    apart = tokens[:, None] != tokens[None, :]  # [fact, other]
    if shown:
        logits = sweep.answer_logits(model, np.concatenate([rows_of(model, prompt) for prompt in prompts]))
        logits = logits[:, tokens]  # [prompt, attribute]
        prefers = np.diagonal(logits)[:, None] > logits
        apart &= prefers & prefers.T
    free = list(range(len(facts)))
    couples: list[list[PromptPair]] = []
    while free:
        a = free.pop(0)
        b = next((other for other in free if apart[a, other]), None)
        if b is None:
            continue
        free.remove(b)
        couples.append(
            [
                PromptPair(
                    clean=prompts[i],
                    corrupted=prompts[j],
                    answer=f" {facts[i][1]}",
                    foil=f" {facts[j][1]}",
                    name=f"{facts[i][0]} / {facts[j][0]}",
                    cluster=" / ".join(sorted((facts[a][0], facts[b][0]))),
                    slice=template,
                )
                for i, j in ((a, b), (b, a))
            ]
        )
    return couples
