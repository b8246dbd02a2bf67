"""Loading a config: what is wrong is said in one line that names file and key."""

from pathlib import Path

import pytest
import yaml

from seg_ext.config import find_config, get_cfg, load_config
from seg_ext.errors import UserError


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "x.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def refusal(path: Path, *opts: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, opts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_yaml_key_names_file_and_nearest(write) -> None:
    text = refusal(write("MODEL: {SEM_SEG_HEAD: {NUM_CLASES: 3}}"))
    assert "x.yaml" in text and "MODEL.SEM_SEG_HEAD.NUM_CLASES" in text
    assert "did you mean MODEL.SEM_SEG_HEAD.NUM_CLASSES?" in text


def test_unknown_command_line_key_names_nearest(write) -> None:
    assert "did you mean SOLVER.MAX_ITER?" in refusal(write("{}"), "SOLVER.MAXITER", "3")
    assert "has no value" in refusal(write("{}"), "SOLVER.MAX_ITER")


def test_wrong_type_is_named(write) -> None:
    assert "SOLVER.STEPS" in refusal(write("SOLVER: {STEPS: hello}"))


@pytest.mark.parametrize("key", ["SOLVER.MAX_ITER", "DATASETS.TRAIN", "SOLVER.BASE_LR", "MODEL.MASK_ON"])
def test_a_number_or_list_left_empty_is_named(write, key: str) -> None:
    section, name = key.split(".")
    assert f"x.yaml: {key} has no value; takes one such as" in refusal(write(f"{section}:\n  {name}:\n"))
    assert f"command line: {key} has no value; takes one such as" in refusal(write("{}"), key, "None")
    cfg = load_config(write("SOLVER: {WEIGHT_DECAY_BIAS: null}"), ["MODEL.BN.EPS", "None"])
    assert cfg.SOLVER.WEIGHT_DECAY_BIAS is cfg.MODEL.BN.EPS is None


def test_a_section_left_empty_is_named(write) -> None:
    assert "x.yaml: SOLVER has no value; takes keys such as" in refusal(write("SOLVER:\n"))
    assert "x.yaml: MODEL.SEM_SEG_HEAD.DECODER.ARGS has no value; takes {}" in refusal(
        write("MODEL: {SEM_SEG_HEAD: {DECODER: {ARGS: }}}")
    )


def test_a_whole_number_does_where_a_float_is_the_default(write) -> None:
    cfg = load_config(write("SOLVER: {BASE_LR: 1}"), ["SOLVER.GAMMA", "0"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.GAMMA) == (1.0, 0.0)
    assert isinstance(cfg.SOLVER.BASE_LR, float) and isinstance(cfg.SOLVER.GAMMA, float)
    assert "SOLVER.MAX_ITER" in refusal(write("SOLVER: {MAX_ITER: 1.5}"))


@pytest.mark.parametrize("text", ["MODEL: [", "x: !!python/object/apply:os.system ['true']", "- 1\n- 2", "just words"])
def test_what_is_no_plain_mapping_is_refused(write, text: str) -> None:
    assert "x.yaml" in refusal(write(text))


def test_missing_file_suggests_a_shipped_one() -> None:
    with pytest.raises(UserError, match=r"did you mean nuclei/panoptic_unet_R_18_FPN.yaml\?"):
        find_config("nuclei/panoptic_unet_R18_FPN.yaml")


def test_shipped_configs_are_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("nuclei/panoptic_unet_R_18_FPN.yaml").MODEL.SEM_SEG_HEAD.DECODER.NAME == "unet"


def test_decoder_arguments_and_losses_are_set_from_the_command_line(write) -> None:
    path = write("MODEL: {SEM_SEG_HEAD: {DECODER: {NAME: pspnet, ARGS: {bins: [1, 2]}}}}")
    losses = "[{'NAME': 'cross_entropy', 'WEIGHT': 2.0}]"
    opts = ["MODEL.SEM_SEG_HEAD.DECODER.ARGS.bins", "[1, 3]", "MODEL.SEM_SEG_HEAD.DECODER.ARGS.channels", "16"]
    cfg = load_config(path, [*opts, "MODEL.SEM_SEG_HEAD.LOSSES", losses])
    assert dict(cfg.MODEL.SEM_SEG_HEAD.DECODER.ARGS) == {"bins": [1, 3], "channels": 16}
    assert cfg.MODEL.SEM_SEG_HEAD.LOSSES == [{"NAME": "cross_entropy", "WEIGHT": 2.0}]


def test_a_dumped_config_reads_back_the_same(write) -> None:
    cfg = load_config("nuclei/panoptic_unet_R_18_FPN.yaml")
    again = load_config(write(cfg.dump(), "dumped.yaml"))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


def test_a_decoders_arguments_do_not_leak_into_the_defaults() -> None:
    load_config("nuclei/panoptic_unet_R_18_FPN.yaml")
    assert dict(get_cfg().MODEL.SEM_SEG_HEAD.DECODER.ARGS) == {}
