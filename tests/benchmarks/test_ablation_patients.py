"""The bench of real patients: its order and its time, its tables, and one small run of it."""

import json

import pytest
from synthetic import LARGE, make_case

from benchmarks import ablation
from benchmarks.ablations import patient_summary, patient_tables, patients, recipes
from benchmarks.ablations.patients import DEFAULT, EQUAL_TIME, KEPT_ASIDE, Job, Machine
from benchmarks.ablations.recipes import ALONE
from benchmarks.ablations.records import COLUMNS, record_file
from kd_jax.runtime.errors import ConfigError, UserError

REGIONS = ("WT", "TC", "ET")


# --- What is run, and when ----------------------------------------------------------------------


def test_each_fold_has_all_recipes_before_the_next_one_begins():
  found = patients.jobs(["kd_net", EQUAL_TIME, ALONE, DEFAULT], range(2), folds=2)
  names = [DEFAULT, ALONE, EQUAL_TIME, "kd_net"]
  assert found[:4] == [Job(name, 0, 0) for name in names]
  assert found[4:8] == [Job(name, 0, 1) for name in names]
  assert found[8:12] == [Job(name, 1, 0) for name in names]
  assert len(found) == 16


class Bench:
  """Runs that take known times on a clock of their own."""

  def __init__(self, seconds, done=()):
    self.seconds, self.now, self.ran, self.finished = seconds, 0.0, [], set(done)

  def run(self, job, left):
    self.ran.append(job)
    needed = self.seconds[job.recipe]
    self.now += needed if left is None else min(needed, left)
    if left is not None and needed > left:
      return False
    self.finished.add(job)
    return True

  def all(self, todo, minutes=None, took=None, trained=()):
    done = self.finished.__contains__
    clock, own = lambda: self.now, trained.__contains__
    return patients.run_all(todo, done, self.run, minutes, took, own, clock)


TODO = patients.jobs(patients.USUAL, range(1), 3)
SECONDS = {DEFAULT: 100.0, ALONE: 30.0, EQUAL_TIME: 90.0}


def test_without_a_limit_all_that_is_missing_is_run():
  bench = Bench(SECONDS, done=TODO[:4])
  assert bench.all(TODO)
  assert bench.ran == TODO[4:]


@pytest.mark.parametrize(
  ("minutes", "runs"),
  [
    (3.4, 2),  # 204 s: 100, 30, then 74 s of 90, which are cut off
    (6, 5),  # 360 s: 220, then the pair of 130 fits, and 90 do not fit into 10
    (5.5, 3),  # 330 s: the default of 100 s would fit after 220, its partner would not
  ],
)
def test_as_many_as_fit_and_no_default_without_its_partner(minutes, runs):
  bench = Bench(SECONDS)
  assert not bench.all(TODO, minutes)
  assert bench.finished == set(TODO[:runs])
  assert len(bench.ran) == (3 if minutes == 3.4 else runs)
  assert bench.now <= 60 * minutes


def test_times_of_earlier_runs_say_what_fits_and_the_first_goes_on_in_any_case():
  bench = Bench(SECONDS)
  assert not bench.all(TODO, 2.4, SECONDS)  # 144 s: the pair takes 130
  assert bench.ran == TODO[:2]
  assert not bench.all(TODO, 1, SECONDS)  # 60 s of 90
  assert bench.ran == TODO[:3]


def test_what_only_lacks_other_patients_scores_is_not_taken_for_long():
  bench = Bench(dict.fromkeys(SECONDS, 5.0))
  assert not bench.all(TODO, 0.9, SECONDS, trained=TODO[:5])  # 54 s: 25, then 90 s of a whole run
  assert bench.ran == TODO[:5]


def settings_of(recipe, factor=1.0):
  machine = patients.CPU
  return patients.settings(Job(recipe, 1, 2), "data", "cache", machine, folds=4, factor=factor)


def test_recipes_differ_in_nothing_but_themselves():
  default, alone, longer = (settings_of(r, 3.7) for r in (DEFAULT, ALONE, EQUAL_TIME))
  assert default.data == alone.data == longer.data
  assert (default.data.spacing, default.data.fold, default.data.folds) == (3.0, 2, 4)
  assert default.optim == alone.optim == longer.optim
  assert default.model.filters == alone.model.filters == (8, 16, 32, 64)
  assert default.train == alone.train
  assert (alone.train.epochs, longer.train.epochs) == (16, 59)
  assert alone.train.steps_per_epoch == longer.train.steps_per_epoch
  assert not longer.model.teachers
  assert longer.train.validate_every == longer.train.epochs  # the last student counts


@pytest.mark.parametrize("spacing", patients.GRIDS)
def test_either_grid_is_possible_with_either_network(spacing):
  for machine in (patients.CPU, patients.ACCELERATOR):
    own = machine._replace(spacing=spacing)
    found = patients.settings(Job(DEFAULT, 0, 0), "data", "cache", own, folds=4)
    assert (found.data.spacing, found.model.filters) == (spacing, machine.filters)


def test_equal_time_is_measured_where_it_can_be_and_then_stays(tmp_path):
  job = Job(EQUAL_TIME, 0, 0)
  assert patients.settle_equal_time(tmp_path / "a", job, 4, 3.456)["factor"] == 3.46
  made_up(tmp_path, DEFAULT, 0, 0, {"a": 0.5}, seconds=0.44)
  made_up(tmp_path, ALONE, 0, 0, {"a": 0.5}, seconds=0.1)
  by_flops = patients.settle_equal_time(tmp_path, job, 2, 3.456, measured=False)
  assert by_flops == {"factor": 3.46, "by": "floating-point operations"}
  (tmp_path / "equal_time.json").unlink()
  assert patients.settle_equal_time(tmp_path, job, 2, 3.456)["factor"] == 4.4
  later = patients.settle_equal_time(tmp_path, job._replace(fold=1), 2, 3.456)
  assert later == {"factor": 4.4, "by": "times of a step, measured"}
  assert "4.4 times the steps" in patients.what(EQUAL_TIME, tmp_path)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--size=patients"], "--data"),
    (["--size=patients", "--data=x", "--test=y"], "--kept-aside"),
    (["--size=cpu", "--minutes=9"], "--minutes belongs to --size=patients"),
    (["--size=patients", "--data=x", "--recipes=bets"], "best"),
  ],
)
def test_flags_that_say_nothing_are_refused(tmp_path, monkeypatch, flags, message):
  monkeypatch.setattr("sys.argv", ["ablation.py", *flags, f"--output={tmp_path}"])
  with pytest.raises((SystemExit, ConfigError), match=message):
    ablation.main()


# --- Tables -------------------------------------------------------------------------------------


def made_up(output, recipe, seed, fold, by_case, *, networks=None, aside=None, seconds=0.1):
  """A record whose Dice of each case is known; HD95 is ten times that, postprocessed 0.1 more."""

  def rows(plus):
    values = {case: dice + plus for case, dice in by_case.items()}
    return {
      c: [x if name.startswith("dice") else 10 * x for name in COLUMNS] for c, x in values.items()
    }

  networks = networks or {"student": 0.5}
  known = {name: dict.fromkeys(REGIONS, dice) for name, dice in networks.items()}
  losses = {"loss/student": 0.2, "loss/distillation": 0.01, "loss/kd/flair": 0.05}
  record = {
    "steps": 400 if recipe == EQUAL_TIME else 100,
    "seconds_per_step": seconds,
    "train_seconds": 100 * seconds,
    "wall_seconds": 20.0,
    "memory_gb": 1.0,
    "spacing": 3.0,
    "filters": [8, 16, 32, 64],
    "networks": known,
    "scores": rows(0),
    "cleaned": rows(0.1),
    "patients": {case: case[0] for case in by_case},
    "over_time": [{"step": 100, "training": known, "validation": known, "losses": losses}],
  }
  if aside:
    record[KEPT_ASIDE] = {
      "cleaned": {case: [x] * len(COLUMNS) for case, x in aside.items()},
      "patients": {case: case for case in aside},
    }
  path = record_file(Job(recipe, seed, fold).folder(output, 2))
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(record))


def test_patients_are_paired_in_what_both_recipes_have(tmp_path):
  made_up(tmp_path, ALONE, 0, 0, {"a1": 0.4, "a2": 0.6, "b": 0.6})  # a: two cases, 0.5
  made_up(tmp_path, ALONE, 0, 1, {"c": 0.3})
  made_up(tmp_path, ALONE, 1, 0, {"a1": 0.6, "a2": 0.8, "b": 0.6})
  made_up(tmp_path, "kd_net", 0, 0, {"a1": 0.5, "a2": 0.7, "b": 0.8})
  made_up(tmp_path, "kd_net", 0, 1, {"c": 0.4})
  rows = patient_summary.summary_of(tmp_path, ["kd_net", ALONE], range(3), 2)
  alone, net = rows
  assert [row["recipe"] for row in rows] == [ALONE, "kd_net"]
  assert alone["scores"]["dice_WT"]["mean"] == pytest.approx((0.6 + 0.6 + 0.3) / 3)
  assert alone["scores"]["dice_WT"]["sd_over_seeds"] is None  # seed 1 has not all patients
  against = net["scores"]["dice_WT"]["against"]
  assert against["n"] == 3  # a 0.5 -> 0.6, b 0.6 -> 0.8, c 0.3 -> 0.4
  assert against["difference"] == pytest.approx((0.1 + 0.2 + 0.1) / 3)
  assert net["cleaned"]["dice_TC"]["mean"] == pytest.approx(net["scores"]["dice_TC"]["mean"] + 0.1)
  assert net["scores"]["dice_WT"]["against_by_seed"] == pytest.approx([0.4 / 3])
  assert net["train_seconds"] == 10
  text = patient_tables.text_of(rows, 2)
  assert "+13.3 [" in text.partition("Dice (postprocessed) against")[2]
  assert "interval over patients" in text
  line = next(x for x in text.splitlines() if x.startswith("kd_net") and " 5.0 % " in x)
  assert "kd/flair 0.05" in line  # 0.01 of a loss of 0.2


def test_share_of_the_teachers_lead(tmp_path):
  """Of the best teacher, folds weighted by cases; '-' where it leads by less than a point."""
  known = {"student": 0.6, "flair": 0.8, "t2": 0.7}
  made_up(tmp_path, ALONE, 0, 0, {"a": 0.5, "b": 0.5, "c": 0.5}, networks={"student": 0.5})
  made_up(tmp_path, ALONE, 0, 1, {"d": 0.5}, networks={"student": 0.1})
  made_up(tmp_path, DEFAULT, 0, 0, {"a": 0.5, "b": 0.5, "c": 0.5}, networks=known)
  made_up(tmp_path, DEFAULT, 0, 1, {"d": 0.5}, networks=known)
  made_up(
    tmp_path,
    "kd_net",
    0,
    0,
    {"a": 0.5, "b": 0.5, "c": 0.5},
    networks={"student": 0.9, "all": 0.509},
  )
  default, alone, net = patient_summary.summary_of(
    tmp_path, [DEFAULT, ALONE, "kd_net"], range(1), 2
  )
  assert alone["share"] == {}
  found = default["share"]["WT"]
  assert (found["alone"], found["teacher"]) == (pytest.approx(0.4), "flair")
  assert found["share"] == pytest.approx((0.6 - 0.4) / (0.8 - 0.4))
  assert net["share"]["WT"]["alone"] == 0.5  # of the fold that both have
  assert net["share"]["WT"]["share"] is None
  text = patient_tables.text_of([default, alone, net], 2).partition("best teacher's lead")[2]
  cells = [line.split() for line in text.splitlines() if line.startswith(("best ", "kd_net "))]
  assert cells[0] == ["best", "WT", "40.0", "60.0", "80.0", "flair", "50", "%"]
  assert cells[3] == ["kd_net", "WT", "50.0", "90.0", "50.9", "all", "-"]


def test_kept_aside_patients_have_a_table_of_all_folds_students(tmp_path):
  for fold, case in enumerate("ab"):
    made_up(tmp_path, ALONE, 0, fold, {case: 0.5}, aside={"x": 0.4, "y": 0.6})
    made_up(tmp_path, DEFAULT, 0, fold, {case: 0.5}, aside={"x": 0.6 + 0.2 * fold, "y": 0.6})
  default, _ = patient_summary.summary_of(tmp_path, [DEFAULT, ALONE], range(1), 2)
  own = default[KEPT_ASIDE]
  assert own["dice_WT"]["mean"] == pytest.approx(0.65)
  assert own["dice_WT"]["against"]["n"] == 2
  assert own["dice_WT"]["against"]["difference"] == pytest.approx(0.15)


def test_records_of_other_lengths_do_not_belong_in_one_table(tmp_path):
  made_up(tmp_path, ALONE, 0, 0, {"a": 0.5})
  made_up(tmp_path, DEFAULT, 0, 0, {"a": 0.5})
  made_up(tmp_path, EQUAL_TIME, 0, 0, {"a": 0.5})  # has other steps by right
  every = [ALONE, DEFAULT, EQUAL_TIME]
  assert len(patient_summary.summary_of(tmp_path, every, [0], 2)) == 3
  made_up(tmp_path, DEFAULT, 0, 1, {"b": 0.5})
  path = record_file(Job(DEFAULT, 0, 1).folder(tmp_path, 2))
  path.write_text(json.dumps(json.loads(path.read_text()) | {"steps": 7}))
  with pytest.raises(UserError, match="differ in their steps"):
    patient_summary.summary_of(tmp_path, every, [0], 2)


# --- A run --------------------------------------------------------------------------------------


def test_a_run_is_scored_and_diagnosed_and_goes_on_where_it_was_killed(tmp_path, tiny, monkeypatch):
  from tiny import KIND

  from benchmarks.ablations import patient_runs
  from kd_jax.models.networks import NETWORKS
  from kd_jax.training import mesh, train

  # By a name that records of settings may have, with filters that no other test builds it with.
  monkeypatch.setitem(NETWORKS, "resunet", KIND)
  monkeypatch.setattr(patients, "POINTS", 2)
  monkeypatch.setattr(train, "mesh_for", lambda settings: mesh.make_mesh(1, 1))
  small = {"data.patch": (16, 16, 16), "inference.overlap": 0.25}
  monkeypatch.setitem(patients.GRIDS, 3.0, small)
  size = recipes.SIZES["patients"]
  own = dict(size.settings) | {"train.steps_per_epoch": 2, "data.batch": 1}
  own |= {"loss.kd_from_epoch": 0, "loss.kd_ramp_epochs": 0.0}
  monkeypatch.setitem(recipes.SIZES, "patients", size._replace(settings=own))
  names = [
    "BraTS-GLI-00001-000",
    "BraTS-GLI-00001-001",
    "BraTS-GLI-00002-000",
    "BraTS-GLI-00003-000",
    "BraTS-GLI-00004-000",
  ]
  for i, name in enumerate(names):
    make_case(tmp_path / ("aside" if i == 4 else "data") / name, seed=i, affine=LARGE)
  job, machine = Job("from_all", 0, 0), Machine(3.0, (4, 4, 8, 12), 1)

  def run(kept_aside=None):
    patient_runs.run(job, tmp_path / "data", tmp_path / "runs", machine, 2, kept_aside, True)

  def killed(*_, **__):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(patient_runs, "score", killed)
    with pytest.raises(KeyboardInterrupt):
      run()
  assert not patients.is_done(job, tmp_path / "runs", 2, kept_aside=False)
  run()
  folder = job.folder(tmp_path / "runs", 2)
  log = (folder / "train.log").read_text()
  assert log.count("compiled in") == 1 and "all steps were done before" in log
  record = json.loads(record_file(folder).read_text())
  assert KEPT_ASIDE not in record and record["steps"] == 2
  # By patient: whoever is scored was not trained on, with any scan.
  subjects = json.loads((folder / "subjects.json").read_text())
  trained = {s["patient"] for s in subjects["train"]}
  assert set(record["patients"]) == set(record["scores"]) == set(record["cleaned"])
  assert trained and not trained & set(record["patients"].values())
  assert [point["step"] for point in record["over_time"]] == [1, 2]
  last = record["over_time"][-1]
  assert set(last["training"]) == {"student", "all"}
  for network, regions in last["validation"].items():
    assert regions == pytest.approx(record["networks"][network])  # the run's own validation
  assert 0 < last["losses"]["loss/distillation"] < last["losses"]["loss/student"]
  assert [p.name for p in (folder / "checkpoints").iterdir() if p.name.isdigit()] == ["2"]

  run(tmp_path / "aside")
  more = json.loads(record_file(folder).read_text())
  assert patients.is_done(job, tmp_path / "runs", 2, kept_aside=True)
  assert list(more[KEPT_ASIDE]["cleaned"]) == [names[4]]
  assert more["scores"] == record["scores"]
  del more[KEPT_ASIDE]
  record_file(folder).write_text(json.dumps(more))
  with pytest.raises(UserError, match="train"):
    run(tmp_path / "data")
