"""Flags act, or are refused in the words of the command line; what is printed, in every encoding."""

import io
import os
import sys
from contextlib import suppress
from itertools import islice

import pytest

from minibn import experiment
from minibn.__main__ import main


@pytest.mark.parametrize(("flags", "message"), [
    (["train", "--output", ""], "--output is empty; give a value, or leave it out"),
    (["convert", "--read", ""], "--read is empty; give a value, or leave it out"),
    (["train", "--output", f"{__file__}/folder"], "minibn: --output must be a folder; "),
    (["train", "--data", "cifar10"], "minibn: --data cifar10 needs --path\n"),
    (["train", "--path", "x"], "minibn: --data digits takes no --path\n"),
    (["convert", "--steps", "5", "--schedule", "step", "--milestones", "3", "2"], "minibn: --milestones must be increasing"),
    (["convert", "--steps", "1_0"], "--steps: needs a whole number from 1 to 1000000000, got '1_0'"),
    (["convert", "--steps", "9" * 400], "--steps: needs a whole number from 1 to 1000000000"),
    (["train", "--seed", "\u0661"], "--seed: needs a whole number of at least 0"),
    (["train", "--lr", "1_0"], "--lr: needs a number of at least 0, got '1_0'"),
    (["train", "--lr", "1e400"], "--lr: needs a number of at least 0, got '1e400'"),
    (["train", "--model", "mlp", "--depth", "20"], "--depth has no effect with --model mlp; it is for --model resnet, preresnet"),
    (["train", "--epochs", "2", "--milestones", "80"], "--milestones must be increasing epochs above 0 and below --epochs 2"),
    (["train", "--schedule", "cosine", "--factor", "0.5"], "--factor has no effect with --schedule cosine; it is for"),
    (["train", "--every", "5"], "--every has no effect without --checkpoint; give --checkpoint too, or leave it out"),
    (["train", "--no-augment"], "--no-augment has no effect with --data digits; it is for --data cifar10"),
    (["train", "--convert", "--convert"], "--convert is given twice; give it once"),
    (["train", "--affine", "--no-affine"], "--affine and --no-affine contradict each other; give one of them"),
    (["sweep", "--workers", "2", "--dask", "a"], "--workers has no effect with --dask a; leave one of them out"),
    (["convert", "--steps", "5", "--growth", "1.1"], "--growth has no effect with --schedule constant; it is for --schedule exp"),
    (["convert", "--steps", "5", "--schedule", "step"], "--schedule step needs --milestones"),
    (["convert", "--steps", "5", "--schedule", "step", "--milestones", "9"], "--milestones 9 is beyond the last step"),
    (["sweep", "--seed", "3"], "unrecognized arguments: --seed 3"),
    (["convert", "--steps", "5", "--warmup", "6"], "--warmup 6 is beyond the last step; it must be at most --steps 5"),
    (["train", "--warmup", "2", "--epochs", "1"], "--warmup must be at most --epochs 1, or lr is never reached; got 2"),
    (["train", "--norm", "group", "--width", "6"], "--width must be divisible by 4 with --norm group, got 6"),
    (["convert", "--steps", "5", "--optimizer", "adamw", "--weight-decay", "1e5"],
     "lr * --weight-decay must be below 1; lower one of them (AdamStep(lr=0.001, beta1=0.9, beta2=0.999"),
    (["train", "--model", "mlp", "--optimizer", "muon", "--fixed", "--rest-lr", "9"], "--rest-lr 9.0 has no effect with --fixed"),
    (["train", "--model", "mlp", "--nesterov", "--momentum", "0"], "--nesterov has no effect with --momentum 0.0"),
    (["convert", "--steps", "2", "--nesterov", "--momentum", "0"],
     "--nesterov has no effect with --momentum 0.0; give a --momentum above 0, or leave it out"),
    (["convert", "--steps", "2", "--decoupled", "--weight-decay", "0"], "--decoupled has no effect with --weight-decay 0.0; "),
    *[([*command, "--output", "-"], f"--output: '-' does not stand for standard output; {what}, or give ./- if it is a name")
      for command, what in ((["convert", "--steps", "2"], "leave it out to print"), (["train"], "give a folder"),
                            (["sweep"], "give a file"), ([], "give a folder"))],
    (["train", "--checkpoint", "-"], "--checkpoint: '-' does not stand for standard output; give a file"),
    (["trian"], "no command 'trian'; there are train, sweep, convert, symmetries"),
])
def test_flags_without_effect_are_refused_in_the_words_of_the_command_line(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(flags)
    assert exit_.value.code == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("content", "flags", "message"), [
    (b"lr\n0.1\n0.2\n", ["--steps", "9"], "has 2 steps, fewer than --steps 9; leave --steps out to take all"),
    (b"lr\n0.1\n0.2\n", ["--lr", "5"], "--lr has no effect with --read"), (b"lr\n0.1\nfast\n", [], "line 3 of the schedule"),
    (b"lr\n", [], "has no steps, only the names of its columns"), (b"", [], "minibn: the first line of the schedule must name"),
    (b"lr\n\xff\n", [], "is not text in UTF-8"), (b"lr\n" + b"1" * 200_000, [], "line 2 of the schedule is not CSV")])
def test_a_schedule_that_cannot_be_read_leaves_nothing_on_standard_output(content, flags, message, capsys, tmp_path):
    (tmp_path / "s.csv").write_bytes(content)
    with pytest.raises(SystemExit):
        main(["convert", "--read", str(tmp_path / "s.csv"), *flags])
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
    assert said.err.count("\n") < 30  # the usage, and one line


def test_a_converted_schedule_goes_to_a_file_and_a_summary_to_the_screen(capsys, tmp_path):
    flags = ["convert", "--lr", "0.1", "--weight-decay", "5e-3", "--steps", "300"]
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert main([*flags, "--output", str(tmp_path / "s.csv")]) == 0
    assert (tmp_path / "s.csv").read_text() == out
    said = capsys.readouterr().out
    assert said.startswith(f"300 steps written to {tmp_path / 's.csv'}\n")
    assert said.count("\n") == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8"])
@pytest.mark.parametrize("flags", [["--help"], ["train", "--help"], ["sweep", "--help"], ["convert", "--help"],
                                   ["symmetries", "--help"], ["symmetries", "mlp"], ["convert", "--steps", "2"],
                                   ["symmetries", "mlp", "--explain", "\u03b3"]], ids=" ".join)
def test_every_encoding_prints(encoding, flags, monkeypatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    with suppress(SystemExit):
        main(flags)
    for stream in streams.values():
        stream.flush()
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams.values())
    assert ("no parameters named" in err) if "--explain" in flags else (len(out) > 100 and not err)


@pytest.mark.parametrize("flags", [["--version"], ["convert", "--steps", "2"], ["symmetries", "mlp"]], ids=" ".join)
def test_a_closed_output_is_no_error(flags, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as Python finds it after `>&-`
    monkeypatch.setattr(sys, "stderr", None)
    with suppress(SystemExit):
        assert main(flags) == 0
    for stream in (sys.stdout, sys.stderr):
        assert stream.name == os.devnull
        stream.close()


@pytest.mark.parametrize(("flags", "name"), [(["train", "--model", "mlp"], "result.json"), (["train"], "history.png"),
                                             ([], "headline.png"), ([], "usual.csv")])
def test_a_result_that_cannot_be_written_is_noticed_before_training(flags, name, tmp_path, monkeypatch, capsys):
    (tmp_path / name).mkdir()
    monkeypatch.setattr(experiment, "run", None)
    with pytest.raises(SystemExit) as exit_:
        main([*flags, "--output", str(tmp_path)])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == f"minibn: {tmp_path / name}: this is a folder; give the name of a file\n"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("flags", "message"), [
    (["--warmup", "0.01"], "minibn: --warmup 0.01 has no effect: it is 0 steps, for an epoch has 22\n"),
    (["--milestones", "0.5", "0.99"], "minibn: --milestones 0.99 has no effect: it is step 22 of 22\n"),
    *[(["--batch", "5000", "--schedule", schedule],
       "minibn: --batch must lie between 1 and the number of examples, 1437; got 5000\n")
      for schedule in ("cosine", "constant", "step", "texp")]])
def test_what_has_no_effect_on_these_images_is_refused_before_training(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--model", "mlp", "--epochs", "1", "--output", str(tmp_path), *flags])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == message


def test_a_warm_up_of_one_step_and_a_drop_at_the_last_one_have_an_effect():
    one = experiment.Experiment(model="mlp", epochs=1, warmup=0.04, milestones=(0.96,))  # of 22 steps
    assert [step.lr for step in islice(one.usual(), 22)] == [0.05, *[0.1] * 20, pytest.approx(0.01)]


@pytest.mark.parametrize("name", ["history.csv", "history.png", "result.json"])
def test_a_checkpoint_that_the_results_would_replace_is_refused_before_training(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "run", None)
    (tmp_path / "link").symlink_to("o")
    for checkpoint in (f"o/{name}", str(tmp_path / "link" / name)):
        with pytest.raises(SystemExit):
            main(["train", "--output", "o", "--checkpoint", checkpoint])
        assert capsys.readouterr().err.startswith(f"minibn: --checkpoint {checkpoint} is a file that is written at the end, too")


def test_standard_input_that_is_closed_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)  # as Python finds it after `<&-`
    with pytest.raises(SystemExit):
        main(["convert", "--read", "-"])
    assert capsys.readouterr().err == "minibn: --read -: standard input is closed; give a file to --read, or open one by < FILE\n"


def test_a_size_inside_a_layer_is_not_called_by_the_flag_of_the_same_name(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--output", str(tmp_path), "--width", "9" * 30])
    assert "minibn: Conv2d: kernel_height=3, kernel_width=3, in_channels=1, out_channels=999" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
def test_a_full_disk_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["convert", "--steps", "5", "--output", "/dev/full"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "minibn: /dev/full: No space left on device\n"
