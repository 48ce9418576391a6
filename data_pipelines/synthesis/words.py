"""Names and words that templates draw from: our own lists, no data set."""

# fmt: off
PEOPLE = (
    "Ada", "Amir", "Anna", "Arjun", "Aylin", "Ben", "Bianca", "Bo", "Carlos", "Chidi", "Clara",
    "Dana", "Darius", "Diego", "Dmitri", "Ebele", "Elena", "Elif", "Emeka", "Emil", "Esther",
    "Farah", "Felix", "Fiona", "Gita", "Goran", "Hana", "Haruto", "Hector", "Ida", "Imani",
    "Ines", "Ivan", "Jamal", "Jana", "Jonas", "Joon", "Julia", "Kaito", "Karim", "Katya", "Kofi",
    "Lars", "Leila", "Lena", "Liam", "Lucia", "Mai", "Malik", "Marta", "Mateo", "Mei", "Mikhail",
    "Mina", "Nadia", "Naomi", "Nia", "Nikos", "Noor", "Olga", "Oscar", "Pablo", "Paula", "Petra",
    "Priya", "Quinn", "Rafael", "Rania", "Ravi", "Rosa", "Ruth", "Sami", "Sara", "Sofia",
    "Stefan", "Sven", "Tara", "Tariq", "Teresa", "Tomas", "Uma", "Vera", "Victor", "Wanda", "Wei",
    "Xavier", "Yara", "Yusuf", "Zara", "Zoltan",
)
PLACES = (
    "Accra", "Almaty", "Bergen", "Bilbao", "Bogota", "Bremen", "Cairo", "Cork", "Cusco", "Dakar",
    "Delhi", "Dublin", "Durban", "Fez", "Genoa", "Ghent", "Graz", "Hanoi", "Havana", "Ibadan",
    "Izmir", "Jaipur", "Kobe", "Krakow", "Kyoto", "Lagos", "Leeds", "Lima", "Lisbon", "Lyon",
    "Malmo", "Manila", "Mumbai", "Nairobi", "Nantes", "Oslo", "Osaka", "Ottawa", "Porto",
    "Prague", "Quito", "Riga", "Salta", "Seoul", "Split", "Tallinn", "Tampere", "Tbilisi",
    "Trieste", "Tunis", "Turin", "Utrecht", "Valencia", "Vilnius", "Warsaw", "Zagreb",
)
GOODS = (
    "apples", "bolts", "books", "bottles", "bricks", "bulbs", "buttons", "candles", "chairs",
    "coins", "cups", "envelopes", "erasers", "hammers", "jars", "lamps", "lemons", "marbles",
    "mugs", "nails", "notebooks", "oranges", "pears", "pencils", "plates", "ropes", "screws",
    "shirts", "spoons", "stamps", "stickers", "tiles", "tickets", "towels",
)
NOUNS = (
    "anchor", "apple", "arrow", "basket", "bell", "bird", "boat", "bottle", "branch", "bread",
    "bridge", "broom", "bucket", "candle", "canyon", "castle", "chair", "cliff", "clock", "cloud",
    "coin", "compass", "copper", "corner", "crow", "curtain", "desert", "door", "drum", "eagle",
    "echo", "ember", "engine", "feather", "fence", "field", "fire", "forest", "fountain", "fox",
    "garden", "gate", "glass", "hammer", "harbor", "hill", "honey", "horizon", "horse", "house",
    "island", "ivy", "jar", "journey", "key", "kitchen", "kite", "ladder", "lake", "lamp",
    "lantern", "leaf", "letter", "library", "lily", "lighthouse", "map", "market", "meadow",
    "mirror", "moon", "morning", "mountain", "needle", "night", "oak", "oar", "ocean", "orchard",
    "owl", "paper", "path", "pebble", "piano", "pocket", "pond", "quilt", "rain", "raven",
    "ribbon", "river", "road", "robin", "roof", "rope", "rose", "sail", "salt", "sand", "school",
    "sea", "shadow", "ship", "silver", "sky", "snow", "song", "sparrow", "spring", "star",
    "stone", "storm", "stove", "street", "summer", "sun", "table", "tent", "thread", "thunder",
    "tide", "tower", "train", "tree", "tunnel", "umbrella", "valley", "village", "violin",
    "wagon", "wall", "water", "wave", "well", "whistle", "willow", "wind", "window", "winter",
    "wolf", "wood", "yard",
)
ADJECTIVES = (
    "amber", "ancient", "bitter", "blue", "bold", "brave", "bright", "brisk", "broken", "calm",
    "careful", "clever", "cold", "crooked", "curious", "dark", "deep", "distant", "dusty",
    "early", "eager", "empty", "faint", "fearless", "fierce", "final", "forgotten", "fragile",
    "gentle", "golden", "gray", "green", "happy", "heavy", "hidden", "hollow", "honest", "humble",
    "kind", "late", "little", "lonely", "loud", "lucky", "narrow", "old", "open", "pale",
    "patient", "plain", "proud", "quick", "quiet", "rare", "restless", "rough", "rusty",
    "scarlet", "secret", "sharp", "shy", "silent", "simple", "sleepy", "slow", "small", "soft",
    "solemn", "steady", "still", "strange", "stubborn", "sudden", "sweet", "tall", "thin", "tiny",
    "tired", "vast", "warm", "weary", "wide", "wild", "wise", "wooden", "yellow", "young",
)
VERBS = (  # past tense, without an object
    "arrived", "awoke", "blinked", "bowed", "climbed", "danced", "drifted", "fell", "floated",
    "glowed", "grew", "hid", "hummed", "hurried", "knelt", "laughed", "lingered", "listened",
    "moved", "nodded", "paused", "returned", "rested", "rose", "sang", "sat", "shivered", "shone",
    "sighed", "slept", "smiled", "spoke", "stayed", "stood", "stumbled", "swam", "trembled",
    "turned", "vanished", "waited", "walked", "wandered", "watched", "wept", "whispered",
    "wondered",
)
ACTIONS = (  # past tense, with an object
    "admired", "brought", "built", "buried", "carried", "caught", "chose", "cleaned", "counted",
    "drew", "dropped", "feared", "fixed", "followed", "forgot", "found", "gathered", "guarded",
    "held", "hid", "kept", "left", "lifted", "lost", "loved", "mended", "moved", "needed",
    "noticed", "opened", "painted", "passed", "polished", "praised", "pulled", "reached",
    "remembered", "repaired", "saved", "saw", "sketched", "sold", "stole", "studied", "touched",
    "traded", "trusted", "wanted", "washed", "watched",
)
ADVERBS = (
    "again", "alone", "always", "boldly", "brightly", "calmly", "carefully", "early", "eagerly",
    "gently", "gladly", "gravely", "quietly", "quickly", "rarely", "sadly", "silently", "slowly",
    "softly", "soon", "steadily", "suddenly", "sweetly", "together", "twice", "warmly", "well",
    "wearily", "wildly",
)
WHERE = (
    "above the valley", "across the bridge", "after the storm", "along the river", "at dawn",
    "at the gate", "before sunrise", "behind the wall", "below the cliff", "beside the lake",
    "beyond the hills", "by the fire", "in the garden", "in the orchard", "inside the tower",
    "near the harbor", "on the roof", "outside the village", "over the meadow", "past midnight",
    "through the forest", "under the bridge", "under the stars", "until evening",
    "within the walls",
)
VARIABLES = (
    "x", "y", "t", "u", "v", "w", "z", "p", "q", "s",
)
# fmt: on
