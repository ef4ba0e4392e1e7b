"""A pipeline of the house's shape that finishes in a second; `preset` says how it ends."""

from kfp import dsl

from feedworks import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def evaluate(preset: str, evaluation: dsl.Output[dsl.Artifact]) -> bool:
    import logging
    import os
    import time
    from pathlib import Path

    from feedworks.errors import DataError

    logging.info("Loading 'datasources' ->\n[]")
    print("evaluating")
    if preset == "bad-data":
        raise DataError("table items, column vector: 3 rows hold NaN; mend the file")
    if preset == "bug":
        raise ZeroDivisionError("nothing was counted")
    if preset == "slow":
        Path("started").touch()
        time.sleep(120)
    folder = Path(evaluation.path)
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text('{"test/rerank/recall@5": 0.5}\n')
    (folder / "threads").write_text(os.environ.get("OMP_NUM_THREADS", ""))
    (folder / "report.html").write_text("<!doctype html>new")
    return preset != "weak"


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def package(evaluation: dsl.Input[dsl.Artifact], model: dsl.Output[dsl.Model]) -> None:
    from pathlib import Path

    Path(model.path).mkdir(parents=True)
    (Path(model.path) / "config.json").write_text("{}")


@dsl.pipeline(name="toy")
def pipeline(source: str, preset: str, overrides: list[str]):
    evaluated = evaluate(preset=preset)
    evaluated.set_retry(2, backoff_duration="30s")
    evaluated.set_cpu_request("1")
    evaluated.set_env_variable("OMP_NUM_THREADS", "64")
    with dsl.If(evaluated.outputs["Output"] == True):  # noqa: E712
        package(evaluation=evaluated.outputs["evaluation"])
