"""The two domains of the echo phantom: ranges that a clip's parameters are drawn from.

`train` is wide and plays a synthetic set; `other` plays the hospital: fewer machines, steadier views, another mix of
gains, blur and dropout, more foreshortening and more irregular beats.

Measured on four real apical four chamber clips of 112x112 at 50 frames per second, with a network's masks, and aimed
at by the ranges of both (no frame of them is in here, but a Dice on these four is not that of a blind guess): a sector
of 2 x 45 degrees from the middle of the top edge (62-71 % of the picture); LV area 4-19 % of it, length 38-70 and
width 17-46 pixels, axis ratio 0.45-0.66, centroid at (55-68, 37-62), the long axis 7-40 degrees from the vertical with
the base to the right, the base's line nearer to the horizontal than a right angle to it; 5th over 95th percentile of
the area 0.52-0.81. Grey: median 3-9, third quartile 22-78, 95th percentile 132-206, 99th 191-248; three pixels in from
the mask's edge a median of 3-17 and a 90th percentile of 26-49; the septum rises within 4 pixels to 100-200, the
lateral wall within 8 to 60-140, the apex hardly. Speckle, correlation of neighbouring pixels across the beam 0.47-0.68
near the probe and 0.79-0.85 at the bottom, along it 0.41-0.77; of frames one apart 0.87-0.96, eight apart 0.35-0.73.
What does not fit: medians along the beam near the probe are about 0.1 too high in `train`, and cavities vary more than
the real ones.
"""

from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True)
class Domain:
    """(low, high) of uniform draws unless said otherwise; lengths in pixels, grey as a share of white.

    Attributes:
        name: of the option. key: of the random streams.
        fps: frames per second. hr: per minute. irregular: deviation of a beat's length, as a share of it.
        ef: percent. length: of the LV at end-diastole. ratio: its width over its length. tilt: mean and deviation of
        the long axis from the vertical, degrees. top: row of the apex. foreshortening: share of the length not seen.
        septum, lateral, apex: grey of the walls. around: grey of what lies round the heart. blood: grey of cavities.
        haze: grey added in cavities near the probe. decibel: dynamic range. bright: 95th percentile of the first
        frame, which the gain sees to. lateral_psf: width of the beam, rad. axial_psf: of the pulse. sharp: edges of the
        stored picture, < 0 blurred.
        papillary: half length of papillary muscles. veil: of a clip in two, how dim inner muscle grows in systole,
        pixels per doubling of the wall (None: nowhere).
        dropout: how many weak places at most. shadow: chance of one. noise: of the receiver. drift: of the heart.
        jpeg: quality of compression.
    """

    name: str
    key: int
    fps: Range
    hr: Range
    irregular: Range
    ef: Range
    length: Range
    ratio: Range
    tilt: Range
    top: Range
    foreshortening: Range
    septum: Range
    lateral: Range
    apex: Range
    around: Range
    blood: Range
    haze: Range
    decibel: Range
    bright: Range
    lateral_psf: Range
    axial_psf: Range
    sharp: Range
    papillary: Range
    veil: Range | None
    dropout: int
    shadow: float
    noise: Range
    drift: Range
    jpeg: Range


TRAIN = Domain(
    name="train", key=61, fps=(30, 60), hr=(48, 110), irregular=(0.01, 0.08), ef=(15, 78), length=(38, 74),
    ratio=(0.4, 0.78), tilt=(13, 12), top=(8, 34), foreshortening=(0.0, 0.15), septum=(0.45, 0.95),
    lateral=(0.25, 0.85), apex=(0.15, 0.7), around=(0.0, 0.65), blood=(-0.3, 0.08), haze=(0.0, 0.45),
    decibel=(38, 66), bright=(0.4, 0.9), lateral_psf=(0.005, 0.019), axial_psf=(0.2, 0.7), sharp=(-0.6, 1.2),
    papillary=(3, 13), veil=(0, 30), dropout=3, shadow=0.35, noise=(-0.25, 0.08), drift=(0.0, 1.5), jpeg=(55, 98))

OTHER = Domain(
    name="other", key=62, fps=(40, 60), hr=(52, 100), irregular=(0.02, 0.12), ef=(20, 72), length=(40, 70),
    ratio=(0.46, 0.74), tilt=(17, 9), top=(12, 30), foreshortening=(0.05, 0.25), septum=(0.6, 1.0),
    lateral=(0.3, 0.7), apex=(0.2, 0.5), around=(0.05, 0.5), blood=(-0.25, 0.05), haze=(0.05, 0.35),
    decibel=(42, 58), bright=(0.48, 0.82), lateral_psf=(0.008, 0.021), axial_psf=(0.25, 0.7), sharp=(-0.3, 0.9),
    papillary=(3, 8), veil=None, dropout=3, shadow=0.5, noise=(-0.2, 0.05), drift=(0.3, 2.0), jpeg=(80, 98))

DOMAINS = {d.name: d for d in (TRAIN, OTHER)}
