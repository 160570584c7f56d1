"""Synthetic speech with a phone label for every mel frame, spoken by eSpeak NG.

eSpeak NG (GPL-3.0, espeak-ng.org) is a separate program, loaded when speech is made and no part of this package. Its
library reports where in the audio every phone begins, which makes the labels exact.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from ...errors import HearTransformersError
from . import effects
from .mels import FRAME_TIMES, FRAMES
from .signals import LENGTH, RATE, Dice, Signal, normalise_level

Phones = NDArray[np.uint8]

LIBRARY = "libespeak-ng.so.1"

# Of speak_lib.h of eSpeak NG 1.51.
RETRIEVE_SYNCHRONOUSLY = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the callback
PHONEME_EVENTS = 1 | 2  # espeakINITIALIZE_PHONEME_EVENTS and _PHONEME_IPA
UTF8 = 1  # espeakCHARS_UTF8
WORDS_PER_MINUTE, PITCH, PITCH_RANGE = 1, 3, 4  # espeak_PARAMETER
LAST_EVENT, PHONEME_EVENT = 0, 7  # espeak_EVENT_TYPE

SILENCE = "_"  # what eSpeak's names of pauses begin with
LANGUAGE_SWITCH = "("  # "(en)": no phone; the next ones are of another language


def _listed(words: str) -> tuple[str, ...]:
    """Split a text into words; this reads better than quotes around each."""
    return tuple(words.split())


LENGTH_MARKS = str.maketrans("", "", "ːˑ:")

PHONES = (
    "other",
    SILENCE,
    *_listed("i y ɨ ʉ u ɪ ʊ e o ə ɚ ɛ ɜ ʌ ɔ æ ɐ a ɑ ɒ"),
    *_listed("eɪ aɪ ɔɪ aʊ əʊ oʊ iə eə aɪə ɑɹ əl"),
    *_listed("p b t d k ɡ m n ŋ f v θ ð s z ʃ ʒ x h ts tʃ dʒ r ɾ ʁ ɹ l ʋ j w"),
)
"""Classes of sounds in the International Phonetic Alphabet, without length: those that take at least a thousandth of
the time in `ENGLISH` and `OTHERS`; the others are "other"."""

SPELLINGS = {"ei": "eɪ", "əɪ": "eɪ", "oɪ": "ɔɪ", "æʊ": "aʊ", "əu": "əʊ", "ʌʊ": "əʊ", "ʌʉ": "əʊ", "ɛə": "eə"}
"""What one accent has in place of a diphthong of the others."""

NUMBERS = {name: i for i, name in enumerate(PHONES)}

ENGLISH = _listed("en en-us en-us-nyc en-029 en-gb-scotland en-gb-x-gbclan en-gb-x-gbcwmd en-gb-x-rp")
OTHERS = _listed(
    """
    af ca cs cy da de es es-419 et eu fi fr-be fr-ch ga hr hu id is it la lt lv ms nb nl pl pt pt-br ro sk sl sq sv sw
    tr
    """
)
"""Languages in Latin script, whose rules of spelling make their own sounds of any word; of others eSpeak spells it."""
ENGLISH_SHARE = 0.6

VARIANTS = _listed(
    """
    m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 klatt klatt2 klatt3 klatt4 Alex Alicia Andrea Andy Annie Denis Diogo Gene
    Gene2 Henrique Hugo Jacky Lee Marco Mario Michael Mike adam anika announcer antonio aunty belinda benjamin boris
    caleb david ed edward grandma grandpa gustave iven iven3 john kaukovalta linda marcelo max michel miguel norbert
    pablo paul pedro quincy steph3 robert sandro shelby steph steph2 travis victor zac croak whisper
    """
)
"""eSpeak's own voice variants: other formants, pitch and breath on any language."""

WORDS = _listed(
    """
    zero one two three four five six seven eight nine ten yes no up down left right on off stop go water paper music
    table window garden summer winter yellow orange purple green black white silver river mountain forest island
    bridge street station train engine travel journey morning evening night today tomorrow yesterday father mother
    brother sister children people person woman man friend teacher doctor worker player singer dancer writer hunger
    bread butter cheese apple banana lemon pepper sugar coffee dinner kitchen bottle glass plate knife spoon chair
    door floor ceiling roof house village city country nation world ocean weather thunder storm rain snow cloud sun
    moon star planet earth fire smoke iron copper gold stone sand wood leaf flower tree bird horse cow sheep chicken
    monkey tiger lion elephant mouse rabbit spider butterfly fish dolphin whale ship boat harbour captain soldier
    king queen castle church temple school college student lesson question answer number letter language story
    picture letterbox telephone television computer machine hammer bucket shovel basket blanket pillow jacket
    trousers shoe finger shoulder elbow knee stomach heart blood voice mouth tooth tongue nose ear eye head hair
    think thought through those these this that the there thing measure pleasure vision usual treasure church judge
    age large change catch reach push wash shadow fashion garage beige young use huge view few music beauty boy
    noise join point loud house how now town flower going show blow close open over under after before never always
    often early later quick slow heavy light strong weak happy angry hungry thirsty empty full clean dirty sharp
    smooth rough quiet swim sing ring long song walk talk run jump climb write read listen hear speak whisper shout
    laugh cry sleep wake begin finish carry follow hold drop throw build break repair study learn teach remember
    forget believe wonder hello welcome please sorry thanks goodbye maybe exactly seldom zebra zoo azure vivid
    velvet giant ginger jungle yard yellow year onion union will wheel wool which while when where why what who
    whole
    """
)
"""Common words chosen for their sounds; the digits are among them."""

ONSETS = _listed("p b t d k g f v s z h m n l r w j y sh ch th st tr pl br gr kl sp sk sl sw fr fl dr kr bl")
NUCLEI = _listed("a e i o u ee oo ay ow ar er ie oy or ea")
CODAS = ["", "", "n", "t", "s", "k", "l", "m", "p", "d", "st", "nd", "v", "z", "f", "sh", "ng", "x", "rk", "lt"]

PSEUDO_SHARE = 0.4  # fraction of the items that are random syllables, not words
ISOLATED_SHARE = 0.4  # fraction of the clips with single words between silences
TRACT_SPREAD = 0.13  # s.d. of the logarithm of the playback rate, which scales pitch and formants
BAND_LIMITED = 0.5
NOISE_DB = (-45.0, -8.0)
SPEECH_STREAM = 1  # separates the draws of speech from those of scenes


@dataclass(frozen=True, slots=True)
class Spoken:
    """An utterance: samples at `RATE`, and the onset (s) and number in `PHONES` of every phone."""

    waveform: Signal
    onsets: NDArray[np.float64]
    phones: list[int]


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h; the union at its end holds the name of a phone."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    )


# t_espeak_callback
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def check() -> None:
    """Raise HearTransformersError if eSpeak NG is not installed, or has spoken in this process already."""
    _load()
    if espeak.cache_info().currsize and espeak().has_spoken:
        raise HearTransformersError(
            "eSpeak NG has spoken in this process, and would remember it in those that make speech; start a new one"
        )


def _load() -> Any:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise HearTransformersError(
            f"{LIBRARY} was not found; install eSpeak NG (Debian and Ubuntu: apt install libespeak-ng1) or make "
            "no speech"
        ) from error


class Espeak:
    """The synthesiser, one per process.

    It has memory: the last digits of its samples and the length of pauses depend on everything it spoke before. Only
    the sequence of a fresh process is reproducible.

    Raises
    ------
    HearTransformersError : eSpeak NG is not installed
    """

    def __init__(self) -> None:
        self._library = _load()
        self.rate = int(self._library.espeak_Initialize(RETRIEVE_SYNCHRONOUSLY, 0, None, PHONEME_EVENTS))
        self.has_spoken = False
        self._samples: list[NDArray[np.int16]] = []
        self._events: list[tuple[float, str]] = []
        self._callback = _CALLBACK(self._collect)  # must live as long as the library may call it
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: Any, n_samples: int, events: Any) -> int:
        """Collect samples and events from the library; returning 0 lets it continue."""
        if samples and n_samples > 0:
            self._samples.append(np.ctypeslib.as_array(samples, (n_samples,)).copy())
        i = 0
        while events[i].type != LAST_EVENT:
            if events[i].type == PHONEME_EVENT:
                self._events.append((events[i].audio_position / 1000, events[i].name.decode("utf8", "replace")))
            i += 1
        return 0

    def speak(self, text: str, voice: str, words_per_minute: int, pitch: int, pitch_range: int, rate: float) -> Spoken:
        """Speak a text.

        Parameters
        ----------
        text : in the spelling of the voice's language
        voice : language and variant, "en-us+f3"
        words_per_minute : 80 to 450
        pitch, pitch_range : 0 to 99
        rate : of playback; above 1, speech is faster, with higher pitch and formants
        """
        library = self._library
        self._samples, self._events = [], []
        self.has_spoken = True
        if library.espeak_SetVoiceByName(voice.encode()):
            raise HearTransformersError(f"this eSpeak NG has no voice {voice!r}; install its data (espeak-ng-data)")
        library.espeak_SetParameter(WORDS_PER_MINUTE, words_per_minute, 0)
        library.espeak_SetParameter(PITCH, pitch, 0)
        library.espeak_SetParameter(PITCH_RANGE, pitch_range, 0)
        encoded = text.encode() + b"\0"
        library.espeak_Synth(encoded, len(encoded), 0, 1, 0, UTF8, None, None)
        library.espeak_Synchronize()
        samples = np.concatenate([np.zeros(1, np.int16), *self._samples]).astype(np.float32) / 2**15
        n = max(1, round(len(samples) * RATE / self.rate / rate))
        phones = [(time, name) for time, name in self._events if not name.startswith(LANGUAGE_SWITCH)]
        return Spoken(
            signal.resample(samples, n).astype(np.float32),
            np.array([time for time, _ in phones]) / rate,
            [phone_number(name) for _, name in phones],
        )


def phone_number(name: str) -> int:
    """Return the number in `PHONES` of a phone by eSpeak's name of it."""
    if not name or name.startswith(SILENCE):
        return NUMBERS[SILENCE]
    name = name.translate(LENGTH_MARKS)
    return NUMBERS.get(SPELLINGS.get(name, name), 0)


@cache
def espeak() -> Espeak:
    """Return the synthesiser of this process."""
    return Espeak()


def item(dice: Dice) -> str:
    """Draw a word or a pseudo-word of one to three syllables."""
    if not dice.chance(PSEUDO_SHARE):
        return str(dice.rng.choice(WORDS))
    syllables = [f"{dice.rng.choice(ONSETS)}{dice.rng.choice(NUCLEI)}" for _ in range(dice.integer(1, 3))]
    return "".join(syllables) + str(dice.rng.choice(CODAS))


def labels(spoken: Spoken, times: NDArray[np.float64]) -> Phones:
    """Return the number of the phone at each time (s): silence before the first and after the waveform."""
    numbers = np.array([NUMBERS[SILENCE], *spoken.phones], np.uint8)
    numbers_at = numbers[np.searchsorted(spoken.onsets, times, side="right")]
    return np.where(times < len(spoken.waveform) / RATE, numbers_at, np.uint8(NUMBERS[SILENCE]))


@dataclass(frozen=True, slots=True)
class Speaker:
    """A voice: everything that is constant within a clip."""

    voice: str
    pitch: int
    pitch_range: int
    rate: float

    @classmethod
    def draw(cls, dice: Dice) -> Speaker:
        """Draw a speaker."""
        language = dice.rng.choice(ENGLISH if dice.chance(ENGLISH_SHARE) else OTHERS)
        voice = f"{language}+{dice.rng.choice(VARIANTS)}"
        rate = float(np.exp(TRACT_SPREAD * dice.rng.standard_normal()))
        return cls(voice, dice.integer(0, 99), dice.integer(10, 90), rate)

    def say(self, dice: Dice, text: str) -> Spoken:
        """Speak at a random tempo."""
        return espeak().speak(text, self.voice, dice.integer(100, 250), self.pitch, self.pitch_range, self.rate)


def running(dice: Dice, speaker: Speaker) -> tuple[Signal, Phones]:
    """Cut two seconds out of an utterance of four to seven items."""
    spoken = speaker.say(dice, " ".join(item(dice) for _ in range(dice.integer(4, 7))))
    start = dice.integer(0, max(0, len(spoken.waveform) - LENGTH))
    clip = np.zeros(LENGTH, np.float32)
    excerpt = spoken.waveform[start : start + LENGTH]
    clip[: len(excerpt)] = excerpt
    return clip, labels(spoken, FRAME_TIMES + start / RATE)


def isolated(dice: Dice, speaker: Speaker) -> tuple[Signal, Phones]:
    """Fill two seconds with single items, each with silence before it."""
    clip = np.zeros(LENGTH, np.float32)
    phones = np.full(FRAMES, NUMBERS[SILENCE], np.uint8)
    start = 0
    while (start := start + int(dice.uniform(0.0, 0.4) * RATE)) < LENGTH:
        spoken = speaker.say(dice, item(dice))
        part = spoken.waveform[: LENGTH - start]
        clip[start : start + len(part)] = part
        phones = np.where(start / RATE <= FRAME_TIMES, labels(spoken, FRAME_TIMES - start / RATE), phones)
        start += len(part)
    return clip, phones


def utterance(seed: int, step: int, index: int, attempt: int = 0) -> tuple[Signal, Phones]:
    """Synthesise one clip of speech of two seconds; in a fresh process the same arguments give the same samples.

    Parameters
    ----------
    seed : of the corpus
    step, index : which batch, which clip of it
    attempt : number of crashes of eSpeak NG 1.51 in this batch so far (about one in 10,000 utterances)

    Returns
    -------
    waveform : (LENGTH,) in [-1, 1] at `RATE`
    phones : (FRAMES,) index into `PHONES` at the centre of every mel frame
    """
    dice = Dice(seed, SPEECH_STREAM, step, index, attempt)
    make = isolated if dice.chance(ISOLATED_SHARE) else running
    clip, phones = make(dice, Speaker.draw(dice))
    clip = effects.record(dice, normalise_level(clip), BAND_LIMITED, NOISE_DB)
    return effects.randomise_level(dice, clip), phones
