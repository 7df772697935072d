"""Draw a picture book: little scenes with five captions each, laid out like Kaggle's Flickr8k.

    python data/sample_scenes.py --out data/sample --seed 0

Some ten seconds on two cores for 2,800 pictures of 192 x 192 pixels and their 14,000 captions; nothing is
downloaded. A scene is a place, a subject, an action and a colour. No two pictures share all four, so the
dev and test pictures show combinations never seen in training, made of parts that all were.
"""

import csv
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.errors import UserError, expect_ctrl_c, one_line_errors

if __name__ == "__main__":
    expect_ctrl_c()  # while the libraries load, too

import cv2
import numpy as np
import tyro

from support.command_line import read_flags
from support.interruptions import leave_quietly
from support.new_processes import starting_workers
from support.process import usable_cores
from support.progress import with_progress

# ---- Words: what a scene may hold, and how captions call it -------------------------------------------

PLACES = {
    "beach": ["near the beach", "on the beach", "at the seaside", "near the ocean on the sandy beach"],
    "lake": ["by the lake", "near a calm lake", "beside the blue lake", "on the grassy bank of a lake"],
    "forest": ["inside the forest", "inside a green forest", "in the woods", "among the trees of the forest"],
    "street": ["on a city street", "in the city", "in front of houses in town", "on a road beside houses"],
    "snow": ["in the snow", "on a snowy hill", "in a winter landscape", "on a cold winter day in the snow"],
    "field": ["on a soccer field", "on the green pitch", "near a goal on the pitch", "on a sports field"],
    "desert": ["in the desert", "among desert dunes", "near cactuses", "in the dry sandy desert"],
    "night": ["at night", "under the moon", "near a tent at night", "in the dark under the stars"],
    "meadow": ["in a flower meadow", "in the park", "on green grass among flowers", "in a field of flowers"],
    "mountains": ["in the mountains", "near rocky mountains", "on a mountain trail", "near snowy peaks"],
}
WATER = {  # a dog that runs at the beach or at the lake runs in the water
    "beach": ["through the water at the beach", "through water near the beach", "through the sea waves"],
    "lake": ["through the water of a lake", "through water at a lake shore", "through a shallow blue lake"],
}
NAMES = {  # {} is the place of an animal's colour; people wear theirs
    "man": ["a man", "a guy", "a grown man", "one man", "a male person"],
    "woman": ["a woman", "a lady", "a young woman", "one woman", "a female person"],
    "boy": ["a boy", "a little boy", "a young boy", "a small boy", "a male child"],
    "girl": ["a girl", "a little girl", "a young girl", "a small girl", "a female child"],
    "couple": ["a man and a woman", "two people , a man and a woman ,", "a woman and a man", "a couple"],
    "men": ["two men", "two male people", "two guys", "two grown men"],
    "women": ["two women", "two female people", "two ladies", "two young women"],
    "children": ["two children", "two young people", "a boy and a girl", "two kids"],
    "family": ["a family of three people", "a family", "two people with their child", "people of one family",
               "parents and their little girl"],
    "friends": ["three adult people", "three friends", "a group of people", "three people", "three adults"],
    "kids": ["three children", "three kids", "three young people", "a group of young people"],
    "cyclist": ["a cyclist", "a person", "a bike rider", "a biker", "a bicyclist"],
    "dog": ["a {} dog", "a {} puppy", "a dog with {} fur", "one {} dog", "a furry {} dog"],
    "dogs": ["two {} dogs", "two {} puppies", "two dogs with {} fur", "two furry {} dogs"],
    "horse": ["a {} horse", "a {} pony", "a horse with {} fur", "one {} horse", "a big {} horse"],
}
FIGURES = {  # who is drawn, from left to right; a subject that is missing here is drawn once
    "couple": ["man", "woman"], "men": ["man", "man"], "women": ["woman", "woman"], "dogs": ["dog", "dog"],
    "children": ["boy", "girl"], "kids": ["boy", "girl", "boy"], "family": ["man", "girl", "woman"],
    "friends": ["woman", "man", "man"],
}
VERBS = {  # what "two people ..."; captions_of conjugates
    "sitting": ["sit", "sit down", "rest"],
    "walking": ["walk", "stroll", "take a walk"],
    "running": ["run", "run fast", "race"],
    "jumping": ["jump", "jump high", "leap into the air"],
    "soccer": ["play soccer", "play football", "kick a soccer ball"],
    "waving": ["wave", "wave hello", "greet with a raised hand"],
    "sleeping": ["sleep", "lie asleep", "take a nap"],
    "grazing": ["graze", "eat from the ground", "feed with a lowered head"],
    "riding": ["ride a bike", "ride a bicycle", "cycle"],
}
PARTICIPLES = {"sit": "sitting", "run": "running", "lie": "lying"}  # the others drop an e and take -ing
CLOTHES = {"red": "#e5383b", "orange": "#f77f00", "yellow": "#ffd60a", "green": "#2fb344", "blue": "#2563eb",
           "pink": "#ff6fb5", "white": "#fdfdfb", "black": "#302f3a"}
FUR = {"brown": "#8a5230", "black": "#3d3b47", "white": "#faf7f0", "golden": "#e9ad4a", "gray": "#9097a3"}
ANIMALS = ("dog", "dogs", "horse")
PEOPLE_DO = ["sitting", "walking", "running", "jumping", "soccer", "waving"]
DOGS_DO = ["sitting", "walking", "running", "jumping", "sleeping"]
OTHERS_DO = {"dog": DOGS_DO, "dogs": DOGS_DO, "cyclist": ["riding"],
             "horse": ["walking", "running", "jumping", "grazing"]}
ODD = {  # what would look odd in a place, or vanish into it
    "lake": {"soccer"}, "forest": {"soccer", "green"}, "street": {"horse"}, "snow": {"white"},
    "field": {"green", "horse", "cyclist"}, "desert": {"soccer", "orange", "golden"}, "meadow": {"green"},
    "night": {"soccer", "black"}, "mountains": {"soccer"},
}


@dataclass(frozen=True)
class Scene:
    """What one picture shows: keys of PLACES, NAMES, VERBS, and of CLOTHES or (for animals) FUR."""

    place: str
    subject: str
    action: str
    colour: str

    @property
    def wet(self) -> bool:
        """Whether a dog splashes through the water."""
        return self.subject in ("dog", "dogs") and self.action == "running" and self.place in WATER

    @property
    def people(self) -> bool:
        """Whether there is more than one person."""
        return self.subject in FIGURES and self.subject not in ANIMALS


def all_scenes() -> list[Scene]:
    """Every sensible combination, always in the same order."""
    return [Scene(place, subject, action, colour)
            for place in PLACES
            for subject in NAMES
            for action in OTHERS_DO.get(subject, PEOPLE_DO)
            for colour in (FUR if subject in ANIMALS else CLOTHES)
            if not ODD.get(place, set()) & {subject, action, colour}]


def captions_of(scene: Scene, rng: np.random.Generator, terse: bool = False) -> list[str]:
    """Five captions in five word orders; four tell all four attributes, one leaves the colour out.

    terse makes that one as short as what people type into a search box: "People sitting near the beach .",
    "Playing soccer ." It is for training pictures; held-out captions have to tell their picture from the others.
    """

    def five(options):
        return [options[i] for i in np.resize(rng.permutation(len(options)), 5)]

    colour, many = scene.colour, scene.subject in FIGURES
    article = "an" if colour == "orange" else "a"
    shirt = f"{colour} shirts" if many else f"{article} {colour} shirt"
    wears = [f"in {shirt}", f"wearing {colour}", f"dressed in {colour}", f"in {colour} clothes"]
    sentences = ["{who} {be} {doing} {where} .", "{where} , {who} {does} .", "{who} {doing} {where} .",
                 "there {be} {who} {doing} {where} .", "{who} {does} {where} ."]
    wheres = (WATER if scene.wet else PLACES)[scene.place]
    choices = (NAMES[scene.subject], wheres, wears, VERBS[scene.action], sentences)
    captions = []
    for who, where, wear, verb, sentence in zip(*map(five, choices), strict=True):
        many = who.split()[0] in ("two", "three", "people", "parents") or " and " in who
        if captions:  # every caption but the first tells the colour
            who = who.format(colour) if scene.subject in ANIMALS else f"{who} {wear}"
        elif terse:
            sentence = "{who} {doing} {where} ." if rng.random() < 0.7 else "{doing} {where} ."
            who = "people" if scene.people and rng.random() < 0.5 else who
            where = "" if scene.action == "soccer" and rng.random() < 0.5 else where
        who = who.replace(" {}", "").replace(" with fur", "")
        verb, *rest = verb.split(maxsplit=1)
        doing = " ".join([PARTICIPLES.get(verb, verb.removesuffix("e") + "ing"), *rest])
        does = " ".join([verb if many else verb + "s", *rest])
        text = sentence.format(who=who, where=where, doing=doing, does=does, be="are" if many else "is")
        captions.append(text[0].upper() + text[1:].replace("  ", " "))
    return [captions[i] for i in rng.permutation(5)]


# ---- Pencils: a picture is made of lines and areas, x to the right and y down, both 0..1 ---------------

INK = "#2b2440"  # of outlines and eyes


def rgb(colour):
    """"#rrggbb" as (red, green, blue), each 0..255."""
    return tuple(bytes.fromhex(colour[1:]))


def mix(colour, other, share):
    """The colour with a share (0..1) of the other stirred in."""
    mixed = np.array(rgb(colour)) * (1 - share) + np.array(rgb(other)) * share
    return "#" + bytes(mixed.round().astype(np.uint8)).hex()


def oval(x, y, wide, high=None, start=0, stop=360):
    """Points (33, 2) around an ellipse of these radii, or along its part from start to stop (degrees)."""
    angle = np.radians(np.linspace(start, stop, 33))
    return np.stack([x + wide * np.cos(angle), y + (high or wide) * np.sin(angle)], 1)


def curve(start, bend, end):
    """Points (13, 2) on a smooth curve from start to end, pulled towards bend."""
    t = np.linspace(0, 1, 13)[:, None]
    return (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(bend) + t**2 * np.array(end)


def spread(rng, count):
    """Places (count,) from 0 to 1, one by lot in each of count equal slots."""
    return (np.arange(count) + rng.uniform(0.1, 0.9, count)) / count


class Canvas:
    """A square of (2 size)^2 pixels, shrunk to half at the end for smooth edges."""

    def __init__(self, size):
        self.size = size
        self.pixels = np.zeros((2 * size, 2 * size, 3), np.uint8)

    def line(self, points, width, colour, filled=False, opacity=1.0):
        """A line with round ends through points (n, 2); a single point is a dot; filled paints the inside."""
        points = np.round(np.atleast_2d(points) * 2 * self.size * 16).astype(np.int32)  # in 1/16 of a pixel
        points = points.repeat(2, 0) if len(points) == 1 else points
        thickness = max(1, round(width * 2 * self.size)) if width else 0
        if opacity < 1:  # what is seen through it is mixed in afterwards
            (left, top), (right, bottom) = points.min(0) // 16 - thickness - 4, points.max(0) // 16 + thickness + 6
            part = self.pixels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
            behind = part.copy()
        if filled:
            cv2.fillPoly(self.pixels, [points], rgb(colour), cv2.LINE_AA, 4)
        if width:
            cv2.polylines(self.pixels, [points], filled, rgb(colour), thickness, cv2.LINE_AA, 4)
        if opacity < 1:
            part[:] = cv2.addWeighted(part, opacity, behind, 1 - opacity, 0)

    def area(self, points, colour, opacity=1.0):
        self.line(points, 0, colour, True, opacity)

    def gradient(self, top, bottom, above, below):
        """Shade the rows from top to bottom from one colour to the other."""
        first, last = round(top * 2 * self.size), round(bottom * 2 * self.size)
        share = np.linspace(0, 1, last - first)[:, None, None]
        shades = np.array(rgb(above)) * (1 - share) + np.array(rgb(below)) * share  # (rows, 1, 3)
        self.pixels[first:last] = shades.astype(np.uint8)

    def ridge(self, rng, height, bumps, colour, waves=2.0):
        """Rolling ground from about this height down to the lower edge."""
        x, (first, second) = np.linspace(0, 1, 41), rng.uniform(0, 6, 2)
        y = height + bumps * (np.sin(waves * 3 * x + first) + 0.5 * np.sin(waves * 7 * x + second))
        self.area([*np.stack([x, y], 1), (1, 1), (0, 1)], colour)

    def dots(self, rng, count, top, bottom, colours, radius):
        """Stars, flowers or snowflakes between two heights."""
        for x, y, share in rng.random((count, 3)):
            colour = colours[rng.integers(len(colours))]
            self.line((x, top + (bottom - top) * y), radius * (1.2 + 1.6 * share), colour)

    def figure(self, parts, x, y, size, facing, edge=INK):
        """Parts (points, width, colour, and True if filled) in own units: x forwards, y up, feet at (0, 0).

        They are drawn twice, first wider and in the colour of the edge: what shows of that is an outline.
        """
        for outline in (0.014, 0):
            for points, width, colour, *filled in parts:
                placed = np.atleast_2d(points) * [facing * size, -size] + [x, y]
                self.line(placed, width * size + outline, edge if outline else colour, bool(filled))


# ---- Figures: people, animals and things as lists of parts ---------------------------------------------

SKINS = ["#f6c9a4", "#e8ab7c", "#c98a5b", "#8d5a3a"]
HAIRS = ["#3a2218", "#6b3e22", "#a8562a", "#211a1d", "#d79b3c"]
TROUSERS = ["#3f4e7a", "#5b5f73", "#6d5145"]
# Degrees from straight down, forwards positive: lean, then (upper, lower) far arm, near arm, far leg and
# near leg; last how high above the ground.
POSES = {
    "walking": (4, (38, 62), (-34, -8), (-22, -42), (30, 12), 0),
    "running": (16, (62, 138), (-62, 28), (-38, -108), (72, -4), 0.04),
    "jumping": (0, (112, 146), (-112, -146), (56, -44), (-40, -100), 0.22),
    "sitting": (-12, (52, 66), (-40, -28), (128, 22), (98, 80), 0),
    "bench": (-4, (40, 74), (22, 66), (92, 6), (84, -4), 0),
    "soccer": (-14, (66, 92), (-70, -44), (-12, -22), (62, 46), 0),
    "waving": (0, (-38, -16), (100, 150), (-9, -6), (11, 6), 0),
    "riding": (30, (62, 70), (54, 64), (24, -32), (72, 6), 0),
}
# The same for animals: lean of the back, height, and far hind, near hind, far fore and near fore leg.
GAITS = {
    "walking": (0, 0, (-26, -34), (22, -6), (28, 14), (-20, -26)),
    "running": (4, 0.1, (-58, -88), (-38, -70), (74, 44), (58, 22)),
    "jumping": (20, 0.24, (-40, -66), (-22, -50), (70, -30), (84, -10)),
    "sitting": (44, 0, (80, -20), (86, -10), (-4, 0), (10, 4)),
    "grazing": (0, 0, (-16, -8), (8, -2), (14, 6), (-8, -4)),
    "sleeping": (0, 0, (70, 88), (80, 90), (84, 90), (78, 90)),
}


def limb(start, angles, length):
    """Joints (3, 2) of an arm (shoulder, elbow, hand) or a leg, its two parts at these angles in degrees."""
    upper, lower = (length * np.array((np.sin(angle), -np.cos(angle))) for angle in np.radians(angles))
    return np.array(start) + [(0, 0), upper, upper + lower]


def person(kind, pose, clothes, rng):
    """Parts of a man, woman, boy or girl, about 1 high when standing."""
    lean, far_arm, near_arm, far_leg, near_leg, lift = POSES[pose]
    child, dress = kind in ("boy", "girl"), kind in ("woman", "girl")
    leg, arm, trunk, head = (0.19, 0.15, 0.27, 0.145) if child else (0.225, 0.165, 0.32, 0.105)
    skin, hair, legs = (options[rng.integers(len(options))] for options in (SKINS, HAIRS, TROUSERS))
    far_leg, near_leg = limb((0, 0), far_leg, leg), limb((0, 0), near_leg, leg)  # the hip is at (0, 0) so far
    hip_height = max(lift + 0.03 - min(far_leg[:, 1].min(), near_leg[:, 1].min()), 0.09)
    up = np.array([np.sin(np.radians(lean)), np.cos(np.radians(lean))])
    shoulder, face = up * (trunk - 0.03), up * (trunk + 0.03) + (0.01, head)
    sleeve = mix(clothes, "#3a2a5a", 0.22)

    def arm_parts(angles):
        joints = limb(shoulder, angles, arm)
        return [(joints, 0.065, skin), (joints[:2], 0.085, sleeve)]

    parts = arm_parts(far_arm)
    if dress:  # long hair falls behind the back
        ends = face + np.array([(-0.3, 0.3), (-0.9, -0.5), (-1, -1.1 if child else -2.1)]) * head
        parts.append((ends, 0.9 * head, hair))
    cloth = skin if dress or kind == "boy" else legs
    for joints, tone in ((far_leg, mix(cloth, INK, 0.2)), (near_leg, cloth)):
        parts += [(joints, 0.085, tone), ([joints[2], joints[2] + (0.05, 0)], 0.07, "#4a2f3a")]
        if kind == "boy":
            parts.append(([joints[0], joints[0] * 0.3 + joints[1] * 0.7], 0.115, legs))
    if dress:  # the skirt hangs between the knees
        left, right = sorted([far_leg[1] * 0.9, near_leg[1] * 0.9], key=lambda knee: knee[0])
        skirt = [(-0.04, 0), left - (0.05, 0.02), right + (0.05, -0.02), (0.04, 0)]
        parts.append((skirt, 0.075, clothes, True))
    parts += [([up * 0.02, up * (trunk - 0.06)], 0.17, clothes), (face, 2 * head, skin),
              (face + oval(-0.08, 0.12, 0.97, 0.95, 10, 215) * head, 0.02, hair, True),
              (face + np.array((-0.02, -0.38)) * head, 0.04, mix(skin, "#ff5d6c", 0.4)),  # cheek, mouth, eyes
              (face + oval(0.42, -0.4, 0.24, 0.2, 190, 350) * head, 0.014, "#a63a3a"),
              (face + np.array((0.2, -0.08)) * head, 0.026, INK),
              (face + np.array((0.68, -0.08)) * head, 0.026, INK), *arm_parts(near_arm)]
    return [(np.atleast_2d(points) + (0, hip_height), *look) for points, *look in parts]


def animal(kind, action, fur):
    """Parts of a dog or a horse; the back is about half a unit long."""
    lean, lift, *legs = GAITS[action]
    dog, dark, pale = kind == "dog", mix(fur, INK, 0.45), mix(fur, "#fff4e0", 0.38)
    leg, thin = (0.15, 0.09) if dog else (0.22, 0.075)
    hip = np.array((-0.22, 0.13 if action in ("sitting", "sleeping") else lift + 1.9 * leg))
    chest = hip + np.array((np.cos(np.radians(lean)), np.sin(np.radians(lean)))) * 0.44
    neck = chest + (0.06, 0.06)
    if dog:
        tail = curve(hip, hip + (-0.2, -0.02), hip + (-0.3, -0.08 if action == "sleeping" else 0.22))
    else:
        tail = curve(hip + (-0.08, 0.08), hip + (-0.28, 0.08 + lift / 2), hip + (-0.28, lift - 0.24))
    parts = [(tail, 0.075, fur if dog else dark)]
    for number, angles in enumerate(legs):
        joints = limb((hip if number < 2 else chest) - (0, 0.04), angles, leg)
        if not lift:  # paws stand on the ground
            joints[1:, 1] = max(joints[1, 1], 0.05), 0.03
        parts.append((joints, thin, fur if number % 2 else mix(fur, INK, 0.22)))
    parts.append(([hip, chest], 0.25, fur))
    if dog:
        head = neck + ((0.16, -0.02) if action == "sleeping" else (0.15, 0.17))
        parts += [([neck, head], 0.17, fur), (head, 0.3, fur),
                  ([head + (0.06, -0.05), head + (0.2, -0.06)], 0.13, pale),
                  (head + (0.25, -0.02), 0.065, INK),
                  (curve(head + (-0.06, 0.1), head + (-0.2, 0.04), head + (-0.13, -0.1)), 0.1, dark)]
        if action == "sleeping":
            return [*parts, (curve(head + (0.03, 0.04), head + (0.07, 0), head + (0.11, 0.04)), 0.02, INK)]
        return [*parts, (head + (0.08, 0.04), 0.06, "#ffffff"), (head + (0.09, 0.04), 0.042, INK)]
    head = neck + ((0.22, -0.34) if action == "grazing" else (0.2, 0.3))
    muzzle, back = head + ((0.13, -0.1) if action == "grazing" else (0.2, -0.12)), np.array((-0.07, 0.05))
    return [*parts, ([neck, head], 0.16, fur), ([head, muzzle], 0.12, fur), (muzzle, 0.125, pale),
            ([head + (-0.03, 0.04), head + (-0.05, 0.13), head + (0.03, 0.07)], 0.02, fur, True),
            (curve(neck + back * 1.6, (neck + head) / 2 + back * 1.8, head + back), 0.08, dark),
            (head + (0.05, 0.0), 0.035, INK)]


def bicycle():
    """Parts of a bike; its saddle is half a unit high."""
    back, front, pedal = np.array([(-0.27, 0.17), (0.31, 0.17), (0, 0.18)])
    saddle, bar, steel = np.array((-0.08, 0.5)), np.array((0.24, 0.56)), "#1fa6a0"
    return [(oval(*back, 0.165), 0.032, INK), (oval(*front, 0.165), 0.032, INK),
            ([back, pedal, bar, saddle, back], 0.03, steel), ([saddle, pedal], 0.03, steel),
            ([bar + 0.04, bar, front], 0.03, steel), ([saddle - (0.05, 0), saddle + (0.05, 0)], 0.05, INK)]


def ball(radius):
    """Parts of a soccer ball."""
    rim = [(spot, 0.42 * radius, INK) for spot in oval(0, radius, 0.8 * radius, start=18, stop=378)[:-1:6]]
    return [((0, radius), 2 * radius, "#ffffff"), ((0, radius), 0.6 * radius, INK), *rim]


# ---- Scenery: far things first; only beach and lake have a shore -----------------------


def sky(canvas, rng, *shades, clouds=3):
    """The sky in one of these pairs of colours (above, below), with a sun and clouds."""
    canvas.gradient(0, 0.75, *shades[rng.integers(len(shades))])
    x, y = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.24)
    for grow, opacity in ((2.2, 0.15), (1.6, 0.25), (1, 1.0)):
        canvas.line((x, y), 0.14 * grow, "#fff1b8", opacity=opacity)
    for x in spread(rng, clouds):
        y, size = rng.uniform(0.06, 0.24), rng.uniform(0.06, 0.11)
        canvas.line([(x - 0.6 * size, y), (x + 0.7 * size, y)], 0.7 * size, "#ffffff")
        canvas.line((x - 0.1 * size, y - 0.25 * size), size, "#ffffff")


def pine(canvas, x, y, height, colour, snowy=False):
    canvas.line([(x, y), (x, y - 0.3 * height)], 0.07 * height, "#6b4430")
    for step in range(3):
        foot, wide = y - (0.15 + 0.25 * step) * height, (0.3 - 0.07 * step) * height
        top = foot - 0.42 * height
        canvas.area([(x - wide, foot), (x, top), (x + wide, foot)], mix(colour, "#ffffff", 0.07 * step))
        if snowy:
            half = (foot + top) / 2
            canvas.area([(x - 0.5 * wide, half), (x, top), (x + 0.5 * wide, half)], "#ffffff")


def tree(canvas, x, y, height, colour="#4fa35e"):
    canvas.line([(x, y), (x, y - 0.6 * height)], 0.09 * height, "#7a4e35")
    for right, up, wide in ((-0.17, 0.6, 0.4), (0.17, 0.62, 0.4), (0, 0.8, 0.48)):
        canvas.line((x + right * height, y - up * height), wide * height, colour)
    canvas.line((x - 0.06 * height, y - 0.84 * height), 0.24 * height, mix(colour, "#ffffff", 0.18))


def palm(canvas, x, y, height, bend):
    trunk = curve((x, y), (x, y - 0.6 * height), (x + bend, y - height))
    canvas.line(trunk, 0.03, "#9c6b3f")
    for dx, dy in ((-0.2, 0.06), (0.2, 0.06), (-0.17, -0.06), (0.17, -0.06), (-0.07, -0.12), (0.07, -0.12)):
        tip, middle = trunk[-1] + (dx, dy), trunk[-1] + (0.5 * dx, dy)
        leaf = [*curve(trunk[-1], middle - (0, 0.09), tip), *curve(tip, middle - (0, 0.03), trunk[-1])]
        canvas.area(leaf, "#24804a" if dy > 0 else "#2f9e5b")
    canvas.line(trunk[-1] + (0, 0.015), 0.03, "#6b4026")


def ripples(canvas, rng, top, bottom, colour):
    for x, y, long in rng.random((14, 3)):
        y = top + (bottom - top) * y
        canvas.line([(x, y), (x + 0.04 + 0.06 * long, y)], 0.007, colour)


def beach(canvas, rng, shore):
    sky(canvas, rng, ("#58b9ee", "#e2f5fb"), ("#f78f6b", "#ffe3a8"), ("#7cc6f0", "#ffe6d0"))
    canvas.gradient(0.45, min(shore + 0.03, 1), "#1679b8", "#3ec6d3")
    ripples(canvas, rng, 0.48, shore - 0.04, "#8fe3ec")
    x = rng.uniform(0.1, 0.9)  # a sailing boat
    canvas.area([(x - 0.05, 0.45), (x + 0.05, 0.45), (x + 0.03, 0.475), (x - 0.03, 0.475)], "#8c4a3a")
    canvas.area([(x, 0.44), (x, 0.34), (x + 0.05, 0.435)], "#fffaf0")
    for lower, colour in ((-0.012, "#ffffff"), (0.012, "#f5d79a"), (0.12, "#f9e0ad")):
        canvas.ridge(rng, shore + lower, 0.006, colour, 3)
    side = rng.choice([-1, 1])
    palm(canvas, 0.5 + 0.43 * side, rng.uniform(0.8, 0.95), rng.uniform(0.55, 0.68), -0.1 * side)
    if shore < 0.8 and rng.random() < 0.7:
        x = 0.5 - 0.38 * side
        canvas.line([(x, 0.84), (x, 0.6)], 0.014, "#8c6a4f")
        for start in range(180, 360, 36):
            slice_of_it = [(x, 0.6), *oval(x, 0.64, 0.12, 0.11, start, start + 36)]
            canvas.area(slice_of_it, ("#ff8fa3", "#fff6e6")[start // 36 % 2])


def lake(canvas, rng, shore):
    sky(canvas, rng, ("#7fc4ea", "#eaf7f5"), ("#a5c8f2", "#fde8dc"))
    canvas.ridge(rng, 0.36, 0.035, "#8fb8b0")
    canvas.ridge(rng, 0.42, 0.02, "#5f9f80", 3)
    for x in spread(rng, 11):
        pine(canvas, x, 0.485, rng.uniform(0.1, 0.19), "#34785c")
    canvas.gradient(0.48, min(shore + 0.05, 1), "#63b7d8", "#2e86c1")
    ripples(canvas, rng, 0.5, shore - 0.04, "#b5e3f0")
    for x in rng.uniform(0.05, 0.95, 2):  # ducks
        y = rng.uniform(0.54, 0.64)
        canvas.area(oval(x, y, 0.04, 0.025, 0, 180), "#fff8ec")
        canvas.line((x + 0.03, y - 0.018), 0.032, "#fff8ec")
        canvas.line([(x + 0.047, y - 0.014), (x + 0.056, y - 0.012)], 0.012, "#f4a12a")
    canvas.ridge(rng, shore - 0.01, 0.008, "#d9e8a6", 3)
    canvas.ridge(rng, shore + 0.005, 0.008, "#79b956", 3)
    for x in rng.choice([0.03, 0.87]) + 0.025 * np.arange(5):  # reeds
        canvas.line([(x, 0.97), (x + rng.uniform(-0.02, 0.02), rng.uniform(0.66, 0.74))], 0.008, "#3e7d3a")
        canvas.line([(x, 0.72), (x, 0.77)], 0.02, "#7a4b2c")


def forest(canvas, rng, shore):
    sky(canvas, rng, ("#a9d8a0", "#e9f3b8"), ("#8cc9a0", "#f4edb0"), ("#7fbf9f", "#d8efc0"), clouds=0)
    rows = [(9, 0.03, "#7fb287", "#8fc07a"), (6, 0.05, "#55916a", "#6aa85f"), (4, 0.09, "#74513c", "#4d8a4a")]
    for depth, (count, wide, bark, grass) in enumerate(rows):
        for x in spread(rng, count):
            left, right = x - wide / 2, x + wide / 2
            canvas.area([(left, 0), (right, 0), (right + 0.2 * wide, 0.75), (left - 0.2 * wide, 0.75)], bark)
        canvas.ridge(rng, 0.6 + 0.06 * depth, 0.012, grass)
    for x, y, share in rng.random((16, 3)):  # leaves above, bushes on both sides
        canvas.line((x, 0.16 * y), 0.16 + 0.14 * share, mix("#2f7a4b", "#5aa85a", share))
        canvas.line((round(x) + 0.2 * y - 0.1, 0.68 + 0.12 * share), 0.14, "#3c7f4a")
    canvas.area([(0.4, 0.72), (0.6, 0.72), (0.95, 1), (0.05, 1)], "#c9b078")
    for x in spread(rng, 4):  # mushrooms
        y = rng.uniform(0.78, 0.96)
        canvas.line([(x, y), (x, y - 0.03)], 0.018, "#fff3dc")
        canvas.area(oval(x, y - 0.03, 0.028, 0.028, 180, 360), "#d64550")


def street(canvas, rng, shore):
    sky(canvas, rng, ("#8ecdf0", "#eef8fb"), ("#f8b195", "#fdebc8"), ("#a9c9f5", "#fbe9ef"))
    left = rng.uniform(-0.12, 0)
    while left < 1:
        wide, top = rng.uniform(0.18, 0.27), rng.uniform(0.2, 0.34)
        wall = ("#e8c7a0", "#c9a0b8", "#9db8c9", "#e3b5a0", "#b9c9a0")[rng.integers(5)]
        canvas.area([(left, 0.7), (left, top), (left + wide, top), (left + wide, 0.7)], wall)
        canvas.area([(left - 0.01, top), (left + wide / 2, top - 0.11), (left + wide + 0.01, top)], "#9c5a4a")
        for x in (left + 0.27 * wide, left + 0.73 * wide):
            for y in top + 0.08 + 0.12 * np.arange(3):
                canvas.line([(x, y - 0.015), (x, y + 0.02)], 0.045, "#fff6d8")
                canvas.line([(x, y - 0.012), (x, y + 0.017)], 0.032, "#5b7f9c")
        left += wide
    canvas.gradient(0.7, 0.8, "#d5d0cc", "#c4bfbd")
    canvas.gradient(0.8, 1, "#7d7f8c", "#6b6d7b")
    for x in np.arange(rng.uniform(-0.2, 0.05), 1, 0.25):
        canvas.line([(x, 0.955), (x + 0.12, 0.955)], 0.016, "#f5f0dc")
    x = rng.choice([0.06, 0.94])
    canvas.line([(x, 0.8), (x, 0.32)], 0.018, "#3b3f51")
    canvas.line((x, 0.3), 0.15, "#fff0a8", opacity=0.35)
    canvas.line((x, 0.3), 0.07, "#ffe27a")
    tree(canvas, 1 - x, 0.8, rng.uniform(0.32, 0.42))


def snow(canvas, rng, shore):
    sky(canvas, rng, ("#8fbbe3", "#e9f2fb"), ("#a8b4dd", "#fbe6ec"), clouds=0)
    canvas.ridge(rng, 0.46, 0.05, "#c3d6ea")
    for x in spread(rng, 6):
        pine(canvas, x, rng.uniform(0.56, 0.66), rng.uniform(0.24, 0.42), "#3d7a73", True)
    canvas.ridge(rng, 0.62, 0.02, "#dfeaf6")
    canvas.ridge(rng, 0.74, 0.015, "#f4f8fd", 1)
    x, y = rng.choice([0.11, 0.89]), rng.uniform(0.76, 0.86)
    for edge in (0.012, 0):  # a snowman
        for up, wide in ((0, 0.15), (0.1, 0.11), (0.175, 0.08)):
            canvas.line((x, y - up), wide + edge, "#9db3cc" if edge else "#ffffff")
    canvas.area([(x, y - 0.18), (x + 0.06, y - 0.165), (x, y - 0.16)], "#f4812a")
    canvas.line((x - 0.012, y - 0.19), 0.014, INK)
    canvas.line([(x - 0.035, y - 0.135), (x + 0.035, y - 0.135)], 0.022, "#3aa17e")
    canvas.line([(x, y - 0.215), (x, y - 0.25)], 0.05, "#3b3f51")
    canvas.dots(rng, 45, 0, 0.95, ["#ffffff"], 0.007)


def field(canvas, rng, shore):
    sky(canvas, rng, ("#6fc0f0", "#e6f6fb"), ("#8fb9ee", "#fdeed6"))
    for x in spread(rng, 9):
        canvas.line((x, 0.5), rng.uniform(0.14, 0.26), mix("#3c8a5a", "#67a95c", rng.random()))
    rows = 0.52 + 0.48 * np.linspace(0, 1, 7) ** 1.4
    for number, grass in enumerate(["#69c45c", "#4fb04c"] * 3):
        canvas.gradient(rows[number], rows[number + 1], grass, grass)
    x = rng.uniform(0.3, 0.7)
    for step in np.linspace(-0.24, 0.24, 9):
        canvas.line([(x + step, 0.32), (x + step, 0.56)], 0.005, "#e8f2ec")
        canvas.line([(x - 0.24, 0.44 + step / 2), (x + 0.24, 0.44 + step / 2)], 0.005, "#e8f2ec")
    canvas.line([(x - 0.24, 0.57), (x - 0.24, 0.32), (x + 0.24, 0.32), (x + 0.24, 0.57)], 0.02, "#ffffff")
    canvas.line([(0, 0.6), (1, 0.6)], 0.012, "#f6fff2")
    canvas.line([(x - 0.36, 0.6), (x - 0.46, 0.74), (x + 0.46, 0.74), (x + 0.36, 0.6)], 0.012, "#f6fff2")


def desert(canvas, rng, shore):
    sky(canvas, rng, ("#f6a860", "#ffe7b0"), ("#7fc8e8", "#fff0cf"), ("#ee8f6c", "#ffdf9e"), clouds=0)
    x = rng.uniform(0.05, 0.8)  # a table mountain
    canvas.area([(x - 0.1, 0.55), (x - 0.05, 0.4), (x + 0.13, 0.4), (x + 0.2, 0.55)], "#c9744f")
    for height, colour in ((0.5, "#e0a15c"), (0.58, "#e9b36b"), (0.7, "#f0c47e"), (0.82, "#f5d191")):
        canvas.ridge(rng, height, 0.028, colour, 1.3)
    for x in (rng.uniform(0.05, 0.14), rng.uniform(0.86, 0.95)):  # cactuses
        y, high = rng.uniform(0.68, 0.8), rng.uniform(0.2, 0.32)
        canvas.line([(x, y), (x, y - high)], 0.042, "#3f8f58")
        for arm, low, up in ((0.06, 0.4, 0.75), (-0.055, 0.3, 0.6)):
            elbow = (x + arm, y - low * high)
            canvas.line([(x, y - low * high), elbow, (x + arm, y - up * high)], 0.036, "#3f8f58")


def night(canvas, rng, shore):
    sky(canvas, rng, ("#0f1b4c", "#4a4a8f"), ("#101a3f", "#2f5d86"), ("#1d1447", "#6a4a8c"), clouds=0)
    canvas.dots(rng, 50, 0, 0.45, ["#fff7d6", "#ffffff"], 0.004)
    canvas.ridge(rng, 0.46, 0.05, "#2c3675")
    for x in spread(rng, 8):
        pine(canvas, x, 0.62, rng.uniform(0.16, 0.3), "#1b2a55")
    canvas.ridge(rng, 0.6, 0.015, "#2a4a68")
    canvas.ridge(rng, 0.74, 0.012, "#3a6470", 1)
    side = rng.choice([-1, 1])
    x = 0.5 + 0.35 * side  # a tent, and a camp fire on the other side
    canvas.area([(x - 0.16, 0.74), (x, 0.5), (x + 0.16, 0.74)], "#e9a24a")
    canvas.area([(x - 0.05, 0.74), (x, 0.56), (x + 0.05, 0.74)], "#fff0a8")
    x = 0.5 - 0.37 * side
    canvas.area(oval(x, 0.8, 0.16, 0.1), "#ffb347", 0.25)
    canvas.line([(x - 0.05, 0.83), (x + 0.05, 0.81)], 0.022, "#6b4430")
    canvas.area([*curve((x - 0.05, 0.815), (x - 0.02, 0.76), (x, 0.68)), (x + 0.05, 0.815)], "#ff7b29")
    canvas.area([(x - 0.02, 0.815), (x, 0.75), (x + 0.02, 0.815)], "#ffe066")


def meadow(canvas, rng, shore):
    sky(canvas, rng, ("#6ec3f4", "#f0fbff"), ("#8fd0f0", "#fff3dc"))
    canvas.ridge(rng, 0.46, 0.05, "#a5d98a")
    for x in spread(rng, 4):
        tree(canvas, x, rng.uniform(0.52, 0.6), rng.uniform(0.2, 0.34))
    canvas.ridge(rng, 0.56, 0.03, "#8fcf6f")
    canvas.ridge(rng, 0.7, 0.02, "#7cc25d", 1)
    canvas.dots(rng, 60, 0.62, 0.99, ["#ff7fa5", "#fff5f0", "#c78bf0", "#ffe45c"], 0.01)


def mountains(canvas, rng, shore):
    sky(canvas, rng, ("#7fb4e6", "#f3f0ff"), ("#f4a88f", "#ffeccc"), ("#9bb8e8", "#ffe9e3"), clouds=2)
    for x in rng.permutation(spread(rng, 4)):
        top, wide = rng.uniform(0.12, 0.28), rng.uniform(0.3, 0.4)
        peak = np.array((x, top))
        for left, rock in ((-wide, "#7b86a8"), (0, "#68739a")):
            canvas.area([(x + left, 0.7), peak, (x + wide, 0.7)], rock)
        jags = np.array([(-0.3, 0.3), (0, 0), (0.3, 0.3), (0.12, 0.2), (0, 0.33), (-0.13, 0.22)])
        canvas.area(peak + jags * (wide, 0.7 - top), "#ffffff")
    canvas.ridge(rng, 0.6, 0.03, "#7ea06a")
    for x in spread(rng, 6):
        pine(canvas, x, rng.uniform(0.63, 0.68), rng.uniform(0.12, 0.24), "#3f7458")
    canvas.ridge(rng, 0.7, 0.02, "#a3a878", 1)
    for x in (rng.uniform(0, 0.12), rng.uniform(0.88, 1)):  # rocks
        y = rng.uniform(0.78, 0.95)
        canvas.area(oval(x, y, 0.1, 0.075, 180, 360), "#8d8a94")
        canvas.area(oval(x - 0.02, y, 0.06, 0.05, 180, 360), "#a5a2ab")


BACKGROUNDS = {"beach": beach, "lake": lake, "forest": forest, "street": street, "snow": snow, "field": field,
               "desert": desert, "night": night, "meadow": meadow, "mountains": mountains}
HEIGHTS = {"man": 0.6, "woman": 0.57, "boy": 0.45, "girl": 0.44, "dog": 0.57, "horse": 0.58, "cyclist": 0.6}


# ---- The scene, and the data set -----------------------------------------------------------------------


def seat(canvas, middle, half, height):
    """A bench of this height, or for height 0 a picnic blanket."""
    if height:
        for x in (middle - 0.8 * half, middle + 0.8 * half):
            canvas.line([(x, 0.9), (x, 0.9 - height)], 0.022, "#54402f")
        canvas.line([(middle - half, 0.9 - height), (middle + half, 0.9 - height)], 0.035, "#a8703f")
    else:
        corners = np.array([(0.06 - half, -0.045), (half - 0.06, -0.045), (half, 0.04), (-half, 0.04)])
        for share, colour in ((1, "#58b5b0"), (0.86, "#f6efe0"), (0.7, "#58b5b0")):
            canvas.area((middle, 0.9) + share * corners, colour)


def draw_scene(scene: Scene, rng: np.random.Generator, size: int = 192) -> np.ndarray:
    """A (size, size, 3) uint8 RGB picture of the scene; all that the scene leaves open is drawn by lot."""
    canvas = Canvas(size)
    BACKGROUNDS[scene.place](canvas, rng, 0.98 if scene.wet else rng.uniform(0.66, 0.76))
    figures = FIGURES.get(scene.subject, [scene.subject])
    count, facing = len(figures), rng.choice([-1, 1])
    scale, gap = {1: (1.0, 0), 2: (0.94, 0.36), 3: (0.86, 0.29)}[count]
    scale, gap = (0.66, 0.46) if scene.subject == "dogs" else (scale, gap)
    middle = 0.5 + rng.uniform(-0.1, 0.1) / count
    pose = scene.action
    if scene.action == "sitting" and scene.subject not in ANIMALS:
        scale, pose = 1.2 * scale, "bench" if scene.place == "street" or rng.random() < 0.5 else "sitting"
        seat(canvas, middle, 0.2 + gap * (count - 1) / 2, 0.16 * scale if pose == "bench" else 0)
    for number in rng.permutation(count):
        kind, tall = figures[number], HEIGHTS[figures[number]] * scale
        x = middle + (number - (count - 1) / 2) * gap + rng.uniform(-0.02, 0.02)
        y = rng.uniform(0.88, 0.92) + 0.03 * scene.wet - 0.06 * (pose == "bench" and kind in ("boy", "girl"))
        turn = facing if pose in ("walking", "running") else rng.choice([-1, 1])
        if kind in ANIMALS:
            x, parts = x - 0.05 * turn, animal(kind, pose, FUR[scene.colour])
        else:
            parts = person("man" if kind == "cyclist" else kind, pose, CLOTHES[scene.colour], rng)
        if kind == "cyclist":
            parts = bicycle() + [(points + np.array((-0.08, 0.18)), *look) for points, *look in parts]
        kicks = pose == "soccer" and number == (0 if facing == 1 else count - 1)
        if pose == "soccer":
            turn = facing if kicks else -facing  # all look at the ball
        canvas.area(oval(x, y, 0.3 * tall, 0.035), "#1f2140", 0.22)
        canvas.figure(parts, x, y, tall, turn, "#fff1c9" if scene.place == "night" else INK)
        if kicks:
            foot = (x + turn * 0.45 * tall, y)
    if pose == "soccer":
        canvas.figure(ball(0.06), *foot, 1, 1)
    if scene.wet:
        canvas.area(oval(middle, 0.97, 0.4, 0.06), "#8edcec", 0.8)
        for x in spread(rng, 22):  # splashes
            up = 0.16 * rng.random()
            canvas.line((middle + 0.8 * (x - 0.5), 0.93 - up), 0.014 + 0.02 * rng.random(), "#f2fdff")
    return cv2.resize(canvas.pixels, (size, size), interpolation=cv2.INTER_AREA)


FAVOURITE = 20.0


def weight(scene: Scene) -> float:
    """How much likelier than others a scene is chosen: what people search for should be there to find."""
    favourites = (("beach", "sitting"), ("forest", "walking"))
    if scene.wet or (scene.people and (scene.place, scene.action) in favourites):
        return FAVOURITE
    # animals and soccer come in fewer combinations than the rest
    rare = 4.0 if scene.subject in OTHERS_DO or scene.action == "soccer" else 1.0
    return rare * (2.0 if scene.place in ("beach", "forest", "field") else 1.0)


def draw_into(folder, task):
    """Draw one picture into a folder; returns its five rows of captions.txt."""
    scene, seed, name, trains = task
    rng = np.random.default_rng(seed)
    picture = draw_scene(scene, rng)[:, :, ::-1]  # OpenCV writes blue, green, red
    if not cv2.imwrite(str(folder / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 92]):
        raise OSError(f"could not write {name} into {folder}")
    return [(name, caption) for caption in captions_of(scene, rng, trains)]


def write_sample(directory: Annotated[Path, tyro.conf.arg(name="out")] = Path("data/sample"), seed: int = 0,
                 train: int = 2400, dev: int = 200, test: int = 200) -> None:
    """Draw the data set into a new folder: Images/, captions.txt and the names in each split.

    Args:
        directory: the folder to make; it must not exist yet.
        seed: the same seed draws the same bytes.
        train: pictures to train on.
        dev: pictures to choose the best epoch with.
        test: pictures to judge it with.
    """
    directory, scenes, total = Path(directory), all_scenes(), train + dev + test
    if min(train, dev, test) < 1:
        raise ValueError(f"each split needs at least one picture: train {train}, dev {dev}, test {test}")
    if total > len(scenes):
        raise ValueError(f"{total} pictures are too many: there are {len(scenes)} different scenes")
    if directory.exists():
        raise FileExistsError(f"{directory} exists already; delete it to draw it anew")
    # Choose by weight, none twice: those whose exponential clocks ring first.
    rng = np.random.default_rng(seed)
    clocks = rng.exponential(size=len(scenes)) / [weight(scene) for scene in scenes]
    chosen = [scenes[i] for i in np.argsort(clocks)[:total]]
    # Deal them out like cards, sorted by what they show, so that each split gets its share of everything; and first the
    # favourites, a fifth each to dev and test.
    chosen.sort(key=lambda one: (weight(one) < FAVOURITE, "" if one.people else one.subject, one.action, one.place))
    counts = {"train": train, "dev": dev, "test": test}
    favourites = sum(weight(one) >= FAVOURITE for one in chosen)
    first = {split: min(favourites // 5, counts[split]) for split in ("dev", "test")}
    first["train"] = min(favourites - sum(first.values()), train)
    deal = []
    for hand in (first, {split: counts[split] - first[split] for split in counts}):
        deal += [split for _, split in sorted(((i + 0.5) / count, split) for split, count in hand.items()
                                              for i in range(count))]
    names = [f"scene_{number:05d}.jpg" for number in rng.permutation(total)]  # a name tells nothing

    tasks = [(scene, [seed, number], names[number], deal[number] == "train") for number, scene in enumerate(chosen)]
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        folder = Path(scratch) / "sample"
        (folder / "Images").mkdir(parents=True)
        # Processes, not threads, which would wait for each other: a drawing is hundreds of short calls.
        rows = []
        pool = ProcessPoolExecutor(usable_cores(), initializer=leave_quietly, initargs=(None,))
        try:
            with starting_workers(need_script=__name__ == "__main__"):  # processes start when tasks come
                drawn = pool.map(partial(draw_into, folder / "Images"), tasks, chunksize=16)
            for five in with_progress(drawn, "drawing scenes", "pictures", total):
                rows += five
        except BrokenProcessPool:
            raise UserError("a process that drew scenes was killed, perhaps for want of memory: begin anew") from None
        finally:
            pool.shutdown(cancel_futures=True)  # after a stop nothing more is drawn
        rows.sort(key=lambda row: row[0])
        with open(folder / "captions.txt", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("image", "caption"), *rows])
        for split in counts:
            members = sorted(name for name, dealt in zip(names, deal, strict=True) if dealt == split)
            (folder / f"Flickr_8k.{split}Images.txt").write_text("\n".join(members) + "\n")
        os.rename(folder, directory)  # in one step, so an interrupted run leaves no half of a data set


if __name__ == "__main__":
    with one_line_errors():
        try:
            read_flags(write_sample)
        except (ValueError, OSError) as error:  # counts that cannot be, a folder that exists, a full disk
            raise UserError(error) from None
