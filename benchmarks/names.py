"""Class names to measure with, since their lengths decide the gain: Caltech101's hundred and
ImageNet's thousand.
"""

import open_clip

CALTECH101 = (  # noqa: SIM905  a list would take a page
    "face, leopard, motorbike, accordion, airplane, anchor, ant, barrel, bass, beaver, binocular, "
    "bonsai, brain, brontosaurus, buddha, butterfly, camera, cannon, car_side, ceiling_fan, "
    "cellphone, chair, chandelier, cougar_body, cougar_face, crab, crayfish, crocodile, "
    "crocodile_head, cup, dalmatian, dollar_bill, dolphin, dragonfly, electric_guitar, elephant, "
    "emu, euphonium, ewer, ferry, flamingo, flamingo_head, garfield, gerenuk, gramophone, "
    "grand_piano, hawksbill, headphone, hedgehog, helicopter, ibis, inline_skate, joshua_tree, "
    "kangaroo, ketch, lamp, laptop, llama, lobster, lotus, mandolin, mayfly, menorah, metronome, "
    "minaret, nautilus, octopus, okapi, pagoda, panda, pigeon, pizza, platypus, pyramid, revolver, "
    "rhino, rooster, saxophone, schooner, scissors, scorpion, sea_horse, snoopy, soccer_ball, "
    "stapler, starfish, stegosaurus, stop_sign, strawberry, sunflower, tick, trilobite, umbrella, "
    "watch, water_lilly, wheelchair, wild_cat, windsor_chair, wrench, yin_yang"
).split(", ")


def class_names(count):
    """The first `count` of Caltech101's names, or, beyond a hundred, of ImageNet's."""
    names = CALTECH101 if count <= len(CALTECH101) else open_clip.IMAGENET_CLASSNAMES
    if count > len(names):
        raise SystemExit(f"error: {count} classes; at most {len(names)} have names here.")
    return list(names[:count])
