"""A manifest with everything measured in it, as a real export leaves it (the numbers are made up)."""

from edgeseg.manifest import (
    Admission,
    Calibration,
    Change,
    CpuClass,
    Estimate,
    FrameCheck,
    FrameProtocol,
    Gate,
    Manifest,
    Rung,
    Scores,
    Speed,
    Speeds,
)

PROTOCOL = FrameProtocol(name="40x36@1.5-uint16", size=(40, 36), spacing=(1.5, 1.5), dtype="uint16", back="labels")


def estimate(value: float, spread: float | None = None, n: int = 20) -> Estimate:
    low, high = (None, None) if spread is None else (value - spread, value + spread)
    return Estimate(value=value, low=low, high=high, n=n)


def gate(name: str, subject: str, kind: str, found: Estimate, relation: str, limit: float, passed: bool,
         tested: str = "value", unit: str = "") -> Gate:
    return Gate(name=name, subject=subject, kind=kind, estimate=found, tested=tested, relation=relation, limit=limit,
                unit=unit, passed=passed)


def with_evidence(m: Manifest) -> Manifest:
    """INT8 is admitted in OpenVINO and not in ONNX Runtime."""
    gates = (
        gate("mean Dice drop", "openvino int8", "accuracy", estimate(0.0012, 0.0008), "<=", 0.01, True, "high"),
        gate("mean Dice drop", "onnxruntime int8", "accuracy", estimate(0.0212, 0.0008), "<=", 0.01, False, "high"),
        gate("LV EF bias", "openvino int8", "clinical", estimate(0.31), "<=", 1, True, unit="points"),
        gate("equal labels, OpenVINO and ONNX Runtime", "fp32 files", "parity", estimate(0.99999), ">=", 0.9999, True),
        gate("times as fast as FP32", "openvino int8", "speed", estimate(1.8, 0.1), ">", 1, True, "low"),
    )
    scores = tuple(Scores(backend=b, precision=p, split=split, dice={
        "RV": estimate(value, 0.02), "MYO": estimate(value - 0.03), "LV": estimate(value + 0.03),
        "mean": estimate(value, 0.01)}) for split, value in (("dev", 0.91), ("val", 0.88))
        for b, p in (("openvino", "fp32"), ("openvino", "int8"), ("onnxruntime", "fp32")))
    speeds = Speeds(cpu_class=CpuClass(isa=("avx2", "avx512_vnni"), cores=2), cpu="Some CPU", threads=2, busy=True,
                    rows=(Speed(backend="openvino", precision="fp32", median_ms=3.5, over_fp32=None),
                          Speed(backend="openvino", precision="int8", median_ms=1.94, over_fp32=estimate(1.8, 0.1))))
    measured = m.measured.model_copy(update={
        "ladder": (Rung(rung="ptq", backend="openvino", settings={}, dice=0.9071, failed=("mean Dice drop",)),
                   Rung(rung="bias", backend="openvino", settings={}, dice=0.9093, failed=())),
        "admission": Admission(data="acdc", split="dev", patients=20, gates=gates), "speeds": speeds, "scores": scores,
        "streaming": (Change(split="val", before=estimate(0.88, 0.01), difference=estimate(-0.004, 0.002)),),
        "frame_checks": (FrameCheck(protocol=PROTOCOL.name, backend="openvino", precision="fp32", agreement=0.9987,
                                    least_dice=0.9979),)})
    sheet = Calibration(recipe="cine phantom", source="phantom:cine?n=40&seed=7", data="cine phantom", synthetic=True,
                        ids="salted", seed=7, patients=40, strata={"phase": {"ED": 1, "ES": 1}}, frames=())
    again = m.model_copy(update={"measured": measured, "calibration": sheet, "frames": (PROTOCOL,),
                                 "licences": {"weights": "CC BY-NC-SA 4.0", "software": "Apache-2.0"}})
    return Manifest.model_validate(again.model_dump())  # model_copy does not check
