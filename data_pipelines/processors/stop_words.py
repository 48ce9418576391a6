"""The commonest function words of thirty languages: a running text holds some of them.

They are chosen to be frequent and short, not to be complete; a language that is not here is not
judged by them.
"""

_LISTS = {
    "en": "the be to of and that have with in is it for on are was as by this not or",
    "de": "der die das und ist in den von zu mit sich auf für nicht ein eine dem des es",
    "fr": "le la les de des et est en un une que qui dans pour pas sur au du ce il",
    "es": "el la los las de que y en un una es por con para no se del al su lo",
    "it": "il la le di che e in un una per non è con del della si da sono lo gli",
    "pt": "o a os as de que e em um uma é do da para com não se por no na",
    "nl": "de het een en van in is dat op te zijn met voor niet aan er om door die ook",
    "sv": "och att det i en som är av på för med den till inte ett om har de var jag",
    "da": "og at det i en er som på til af for med den ikke der de et har var jeg",
    "no": "og i det er som på en til av for med at den ikke et har de var jeg om",
    "fi": "ja on ei se että oli hän mutta ovat myös kun tai joka niin kuin ole sen jos",
    "pl": "i w na z się nie do to że jest o jak po co ale przez od za dla są",
    "cs": "a v na se je že s z do to o i ve jako pro ale po by od jsou",
    "sk": "a v na sa je že s z do to o aj vo ako pre ale po by od sú",
    "hu": "a az és hogy nem is egy ez van meg de csak volt mint ha már vagy azt sem el",
    "ro": "și de la în a nu cu pe un o este care să că din pentru mai au se sunt",
    "tr": "ve bir bu da de için ile ne çok daha gibi o var olarak ama değil mi en kadar olan",
    "id": "yang dan di ini itu dengan untuk tidak dari dalam akan pada ke adalah juga saya ada",
    "vi": "là và của có không được một trong cho với các này người đã khi những để từ đó",
    "ca": "el la els les de que i en un una és per amb no es del al seu més com",
    "ru": "и в не на что я с он как это по но из у за от так же то для",
    "uk": "і в не на що я з він як це по але у за від так же то для та",
    "bg": "и в не на че се да от за с по е са това като но ще до при към",
    "sr": "и је у да се на не за од са су то као али i je u da se na ne za od su to kao",
    "el": "και το να του η της με που την από για είναι ο στο δεν τα των τη σε θα",
    "ar": "في من على أن إلى هذا التي الذي ما لا هو كان عن مع هذه كل قد بين بعد و",
    "fa": "و در به از که این را با است برای آن یک خود تا کرد بر هم نیز شد ما",
    "he": "של את על לא זה הוא עם כי גם היא אני כל יש או אבל מה אל הם כמו אם",
    "hi": "के है में की को से का और पर यह हैं भी एक नहीं कि था ने तो हो इस",
    "ko": "이 그 수 것 있는 및 등 더 한 는 은 를 을 에 의 가 있다 하는 대한 또는",
}
STOP_WORDS = {language: frozenset(words.split()) for language, words in _LISTS.items()}
