from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from analysis import toy
from analysis.toy import columns, spec
from matplotlib.colors import to_hex
from matplotlib.text import Text

from sim.analysis import frames, paper_plots, plots_over_time, plots_shares, plots_summary, style
from sim.analysis.binding import binding, promised_shares
from sim.analysis.plots import plot_result
from sim.analysis.summary import summarise
from sim.records.result_folder import Result
from sim.records.schema import REASONS, Outcome, TimelineBlock, join_tables, requests_table, timeline_table

PHASE = [(30.0, 60.0, "phase 2")]
RUN = {"run_id": "x", "policy": "none", "variant": {}, "replication": 0}


@pytest.fixture(scope="module")
def exp1():
    return toy.experiment1()


@pytest.fixture(scope="module")
def exp2():
    return toy.experiment2()


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def line(axis, label):
    (found,) = [each for each in axis.lines if each.get_label() == label]
    return found


def texts_apart(figure):
    """Names of overlapping texts among titles, labels, legends, notes and tick labels: there should be none."""
    figure.draw_without_rendering()
    unseen = set()  # matplotlib keeps spare ticks outside the view, which it does not draw
    for axis in (each for axes in figure.axes for each in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low <= tick.get_loc() <= high:
                unseen |= {tick.label1, tick.label2}
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    shown = [text for text in shown if text not in unseen]
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown]
    inside = figure.bbox.padded(2.0)
    for words, box in boxes:
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1, f"clipped: {words}"
        assert inside.y0 <= box.y0 < box.y1 <= inside.y1, f"clipped: {words}"
    return [
        (first, second)
        for i, (first, box) in enumerate(boxes)
        for second, other in boxes[i + 1 :]
        if box.padded(-1.0).overlaps(other.padded(-1.0))
    ]


def test_a_window_holds_the_median_the_p99_and_their_n():
    table = frames.windows(pd.Series([0.0, 1.0, 9.9, 25.0]), pd.Series([1.0, 2.0, 9.0, 4.0]), 10.0)
    assert table.index.tolist() == [5.0, 15.0, 25.0]
    assert table["n"].tolist() == [3, 0, 1]
    assert table["p50"].tolist()[::2] == [2.0, 4.0]
    assert table["p99"].iloc[0] == pytest.approx(2.0 + 0.98 * 7.0)
    assert np.isnan(table["p99"].iloc[1])


def pool_frame(**series):
    return pd.DataFrame({name: np.asarray(values, dtype=float) for name, values in series.items()})


def test_what_binds_is_what_is_used_most_in_the_busy_hours():
    kv = [0.2] * 18 + [0.9] * 2
    pool = pool_frame(in_flight=[4] * 20, capacity_slots=[16] * 20, kv_used_fraction=kv, tokens_per_s=[100] * 20)
    found = binding(pool, tokens_per_s=200.0)
    assert found.used == {"slots": 0.25, "kv": 0.9, "tokens_per_s": 0.5}
    assert found.resource == "kv"
    assert str(found) == "KV blocks bind: 90% in use at P95"
    assert binding(pool.drop(columns="kv_used_fraction")).resource == "slots"  # no capacity in tokens is declared
    assert binding(pool_frame(waiting=[1.0])).used == {"slots": 0.0}
    assert binding(pool_frame(in_flight=[1.0, 1.0], capacity_slots=[0.0, 2.0])).used == {"slots": 0.5}  # none, then two


def test_promised_shares_are_of_what_binds():
    baselines = {"a": {"slots": 6.0, "tokens_per_s": 10.0}, "b": {"slots": 2.0}, "c": None}
    pool = {"entitlements": [{"name": name, "baseline": baseline} for name, baseline in baselines.items()]}
    assert promised_shares(pool, "slots") == {"a": 0.75, "b": 0.25, "c": 0.0}
    assert promised_shares(pool, "tokens_per_s") == {"a": 1.0, "b": 0.0, "c": 0.0}
    assert promised_shares({"entitlements": [{"name": "c"}]}, "slots") == {}


def test_the_fair_share_figures_have_parts_of_a_whole_and_the_promise(exp2):
    _, timeline = exp2
    names = frames.names(timeline, "name")
    names = [name for name in names if name != "pool"]
    promised = [{"name": name, "baseline": {"slots": i}} for i, name in enumerate(names, 1)]
    pool = {"replicas": 1, "entitlements": promised}
    figure = plots_shares.fair_share(timeline, pool)
    whole = sum(i for i in range(1, len(names) + 1))
    for axis in figure.axes:
        lines = {str(each.get_label()): np.asarray(each.get_ydata(), dtype=float) for each in axis.lines}
        parts = np.nansum([lines[name] for name in names], axis=0)
        assert np.allclose(parts[parts > 0], 1.0)
        dotted = sorted(float(each.get_ydata()[0]) for each in axis.lines if str(each.get_label()).startswith("_"))
        assert dotted == pytest.approx([i / whole for i in range(1, len(names) + 1)])
    assert texts_apart(figure) == []
    totals = plots_shares.fair_share_totals(timeline, pool)
    assert totals.axes[0].get_yticklabels()[0].get_text() == "promised"
    assert texts_apart(totals) == []


@pytest.mark.parametrize("width", ["screen", "column", "page"])
def test_figures_fit_the_width_they_are_drawn_for(tmp_path, exp1, width):
    _, timeline = exp1
    inches = {"screen": 9.0, "column": 3.5, "page": 7.16}[width]
    with style.drawn_for(width):
        figure = plots_over_time.queue_over_time(timeline)
        assert figure.get_figwidth() == pytest.approx(inches)
        names = [path.name for path in style.save(figure, tmp_path, "queue")]
    assert ("queue.pdf" in names) == (width != "screen")
    assert texts_apart(figure) == []
    assert plots_over_time.queue_over_time(timeline).get_figwidth() == 9.0


def test_a_pdf_has_stable_bytes(tmp_path, exp1):
    _, timeline = exp1
    with style.drawn_for("column"):
        for folder in ("a", "b"):
            style.save(plots_over_time.queue_over_time(timeline), tmp_path / folder, "queue")
    assert (tmp_path / "a/queue.pdf").read_bytes() == (tmp_path / "b/queue.pdf").read_bytes()


def test_logarithmic_bars_begin_at_a_power_of_ten_below_the_least():
    assert [plots_summary._decade_below(value) for value in (0.3, 1, 7, 100)] == pytest.approx([0.1, 0.1, 1, 10])


def test_mean_present_is_the_integral_over_the_window():
    start, end, weight = (np.asarray(x, dtype=float) for x in ([0.0, 1.0, 5.0], [2.0, np.inf, 6.0], [1.0, 2.0, 4.0]))
    # in [0, 2): 1*2 + 2*1 = 4 over 2 s; in [2, 6): 2*4 + 4*1 = 12 over 4 s
    assert frames.mean_present(start, end, weight, np.asarray([0.0, 2.0, 6.0])).tolist() == [2.0, 3.0]


def test_thinning_keeps_the_mean_and_the_ends():
    series = pd.DataFrame({"x": np.arange(1200.0)}, index=np.arange(1200.0))
    thin = frames.thinned(series, most=600)
    assert len(thin) == 600
    assert thin["x"].mean() == series["x"].mean()
    assert thin.index[0] == 0.0


def test_cut_says_what_it_leaves_out():
    parts = [
        requests_table(columns([spec("a")], [{}]), **{**RUN, "variant": {"x.seed": str(i // 2)}, "replication": i % 2})
        for i in range(20)
    ]
    cut = frames.cut(join_tables(parts), ["final"])
    assert [label for label, _ in cut.cases] == [f"none\nseed={i}" for i in range(frames.MAX_CASES)]
    assert all(len(frame) == 1 for _, frame in cut.cases)
    assert cut.note == "Shown: the first 6 of 10 variants and the first of 2 replications."


def test_looks_differ_in_more_than_colour_and_belong_to_the_name(exp1):
    looks = style.looks_of(*exp1)
    assert looks == style.looks(["spot-b", "guaranteed-c", "guaranteed-a"])
    for field in ("colour", "line", "marker", "hatch"):
        assert len({getattr(look, field) for look in style.LOOKS}) == len(style.LOOKS)
    shared = requests_table(columns([spec("a1", tenant="t"), spec("a2", tenant="t")], [{}, {"entitlement": 1}]), **RUN)
    fixed = style.looks_of(shared)
    assert fixed["t"] == fixed["a1"] != fixed["a2"]


@pytest.mark.parametrize(("span_s", "window_s"), [(90, 5), (300, 10), (600, 20), (86400, 2000), (0.5, 0.02)])
def test_windows_are_round(span_s, window_s):
    assert style.nice_window_s(span_s, 20 if span_s == 90 else 30) == pytest.approx(window_s)


def test_latency_over_time_shows_p99_median_refusals_and_counts(exp1):
    figure = plots_over_time.latency_over_time(exp1[0], phases=PHASE)
    assert [axis.get_title().split("\n")[0] for axis in figure.axes] == ["none", "rate-limit", "token-pool"]
    assert figure.axes[0].get_ylabel() == "time to first token (s)"
    assert {axis.get_xlabel() for axis in figure.axes} == {"simulated time (s)"}
    assert {axis.get_yscale() for axis in figure.axes} == {"log"}
    names = ["guaranteed-a", "guaranteed-c", "spot-b"]
    assert legend(figure) == [*(f"{name}: P99" for name in names), "thin: median", "a refused request"]
    frame = exp1[0].to_pandas()
    served = frame[(frame["policy"] == "none") & (frame["entitlement"] == "spot-b") & frame["first_token_s"].notna()]
    drawn = line(figure.axes[0], "spot-b: P99")
    window = served[served["first_arrival_s"] < 5.0]
    ttft = window["first_token_s"] - window["first_arrival_s"]
    assert drawn.get_ydata()[0] == pytest.approx(ttft.quantile(0.99))
    assert drawn.get_xdata()[0] == 2.5
    got = (frame["policy"] == "token-pool") & frame["first_token_s"].notna()
    assert f"{got.sum()} of 201 got a first token" in figure.axes[2].get_title()
    (marks,) = [each for each in figure.axes[2].lines if each.get_marker() == "|"]
    assert to_hex(marks.get_color()).upper() == style.looks(names)["spot-b"].colour
    refused = frame[(frame["policy"] == "token-pool") & (frame["outcome"] == "refused")]["first_arrival_s"]
    assert np.abs(np.sort(marks.get_xdata()) - np.sort(refused)).max() < 0.1
    assert texts_apart(figure) == []


def test_a_run_where_nobody_was_served_still_has_its_figure():
    rows = [{"arrival_s": float(i), "outcome": Outcome.REFUSED} for i in range(5)]
    figure = plots_over_time.latency_over_time(requests_table(columns([spec("a")], rows), **RUN))
    assert "0 of 5 got a first token\nno first token" in figure.axes[0].get_title()
    assert texts_apart(figure) == []


def test_queue_over_time_shows_the_samples(exp1):
    figure = paper_plots.experiment1_queue(exp1[1], phases=PHASE)
    assert [axis.get_title() for axis in figure.axes] == [
        "token-pool\npeak queue 0", "none\npeak queue 28", "rate-limit\npeak queue 6",
    ]  # fmt: skip
    assert legend(figure) == ["waiting", "running", "capacity (slots)"]
    assert max(line(figure.axes[1], "waiting").get_ydata()) == 28
    assert set(line(figure.axes[1], "capacity (slots)").get_ydata()) == {16.0}
    assert figure.axes[0].get_ylim()[1] > 28
    assert "phase 2" in [text.get_text() for text in figure.axes[0].texts]
    assert texts_apart(figure) == []


def test_shares_of_capacity_are_stacked():
    blocks = [
        TimelineBlock("pool", "pool", [0.0, 1.0], {"capacity_slots": [4, 2]}),
        TimelineBlock("entitlement", "b", [0.0, 1.0], {"in_flight": [1, 1]}),
        TimelineBlock("entitlement", "a", [0.0, 1.0], {"in_flight": [2, 2]}),
    ]
    figure = plots_over_time.capacity_share(timeline_table(blocks, **RUN))
    (axis,) = figure.axes
    assert legend(figure) == ["a", "b", "all slots"]
    tops = {area.get_label(): area.get_datalim(axis.transData).y1 for area in axis.collections}
    assert tops == {"a": 1.0, "b": 1.5}  # at 1 s: 2 of 2 slots, and one more that waits
    assert len({area.get_hatch() for area in axis.collections}) == 2


def test_experiment_1_latency_says_p99_and_share_served_in_the_phase(exp1):
    figure = paper_plots.experiment1_latency(exp1[0], phases=PHASE)
    assert [axis.get_title().split("\n")[0] for axis in figure.axes] == ["token-pool", "none", "rate-limit"]
    words = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert words == [
        "guaranteed-a: P99 0.40 s, 22 of 22", "guaranteed-c: P99 0.40 s, 22 of 22", "spot-b: P99 0.40 s, 9 of 37",
        "objective 1.2 s",
    ]  # fmt: skip
    points = line(figure.axes[1], "guaranteed-c: P99 13.31 s, 22 of 22")
    assert len(points.get_xdata()) == 22
    assert texts_apart(figure) == []


def test_experiment_1_slots_never_exceed_the_replica(exp1):
    figure = paper_plots.experiment1_slots(*exp1, phases=PHASE)
    for axis in figure.axes:
        assert max(area.get_datalim(axis.transData).y1 for area in axis.collections) <= 1.0
    assert legend(figure) == ["guaranteed-a", "guaranteed-c", "spot-b", "all slots"]
    assert texts_apart(figure) == []


def test_experiment_2_has_its_six_panels(exp2):
    figure = paper_plots.experiment2(*exp2, phases=[(30.0, 120.0, "outage")])
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[:4] == ["In flight and capacity", "Debt and weight", "Admissions and refusals",
                          "Admission delay, retries included (P99)"]  # fmt: skip
    assert titles[4].startswith("P99 time to first token and objective (n = ")
    assert titles[5] == "Output tokens"
    labels = {axis.get_ylabel() for axis in figure.axes}
    assert labels >= {"slots", "debt", "weight", "admitted/s", "refused/s", "delay (s)", "seconds", "tokens/s"}
    assert legend(figure) == ["copilot", "reports", "synth", "capacity", "gateway wait alone"]
    by_label = {axis.get_ylabel(): axis for axis in figure.axes}
    frame = exp2[0].to_pandas()
    refused = frame[frame["outcome"] == "refused"]["entitlement"].value_counts()
    # Ten-second means times ten seconds add up to what happened; the last sample window stays open.
    assert 10 * line(by_label["refused/s"], "synth").get_ydata().sum() == pytest.approx(refused["synth"], rel=0.01)
    tokens = frame[frame["entitlement"] == "copilot"]["output_tokens"].sum()
    assert 10 * line(by_label["tokens/s"], "copilot").get_ydata().sum() == pytest.approx(tokens, rel=0.01)
    slos = {each.get_ydata()[0] for each in by_label["seconds"].lines if len(set(each.get_ydata())) == 1}
    assert slos >= {0.5, 5.0, 30.0}
    assert texts_apart(figure) == []


def test_bars_have_value_n_and_shares(exp1):
    summary = summarise(exp1[0], horizon_s=90.0, warmup_s=0.0)
    figure = plots_summary.tail_latency(summary)
    ttft, e2e, shares = figure.axes
    assert (ttft.get_xlabel(), e2e.get_xlabel()) == ("P99 time to first token (s)", "P99 end to end (s)")
    assert ttft.get_xscale() == "log"  # 0.4 to 14.3 s
    assert e2e.get_xscale() == "linear"
    rows = [row for row in summary if row["tenant"] == "spot-b"]
    words = [text.get_text() for text in ttft.texts]
    for row in rows:
        assert f"{style.seconds(row['ttft_p99_s'])} (n={row['finished']})" in words
    ticks = [tick.get_text() for tick in ttft.get_yticklabels()]
    assert ticks[3:6] == ["spot-b: none", "spot-b: rate-limit", "spot-b: token-pool"]
    for y in range(len(ticks)):  # what became of the requests adds up to all of them
        ends = [bar.get_x() + bar.get_width() for bar in shares.patches if abs(bar.get_y() + 0.36 - y) < 0.1]
        assert max(ends) == pytest.approx(1.0)
    assert legend(figure) == ["refused", "evicted, failed, cancelled", "unfinished at the horizon"]
    assert texts_apart(figure) == []


def test_bars_show_intervals_of_replications_and_missing_latency():
    rows = [{"arrival_s": 0.0, "entitlement": 1, "outcome": Outcome.REFUSED, "reason": REASONS.index("tokens")}]
    parts = []
    for i in range(3):
        served = {"arrival_s": 0.0, "forwarded_s": 0.0, "first_token_s": 1.0 + i, "finish_s": 9.0, "output_tokens": 2}
        made = columns([spec("a"), spec("b")], [*rows, {**served, "outcome": Outcome.FINISHED}])
        parts.append(requests_table(made, **{**RUN, "replication": i}))
    summary = summarise(join_tables(parts), horizon_s=10.0, warmup_s=0.0)
    figure = plots_summary.tail_latency(summary)
    whiskers = [each for each in figure.axes[0].lines if each.get_marker() == "|"]
    (low, high) = whiskers[0].get_xdata()
    assert (low, high) == pytest.approx((max(0.0, summary[0]["ttft_p99_s_ci_low"]), summary[0]["ttft_p99_s_ci_high"]))
    assert "none finished" in [text.get_text() for text in figure.axes[0].texts]
    assert texts_apart(figure) == []


def test_refusals_are_stacked_by_reason():
    codes = [REASONS.index(name) for name in ("low_priority", "tokens", "tokens")]
    rows = [{"outcome": Outcome.REFUSED, "reason": code} for code in codes] + [{"outcome": Outcome.RUNNING}]
    summary = summarise(requests_table(columns([spec("a")], rows), **RUN), horizon_s=10.0, warmup_s=0.0)
    figure = plots_summary.refusals(summary)
    (axis,) = figure.axes
    assert [(bar.get_x(), bar.get_width()) for bar in axis.patches] == [(0.0, 0.25), (0.25, 0.5)]
    assert legend(figure) == ["low priority", "tokens"]
    assert axis.texts[0].get_text() == "75.0% of 4"
    assert axis.get_xlabel() == "share of offered requests"


def test_many_tenants_and_long_names_stay_apart():
    owners = [spec(f"a-rather-long-tenant-name-{i}") for i in range(9)]
    rows = [
        {"arrival_s": float(j), "entitlement": i, "forwarded_s": float(j), "first_token_s": j + 1.0 + i,
         "finish_s": j + 99.0, "output_tokens": 5, "outcome": Outcome.FINISHED}
        for i in range(9) for j in range(20)
    ]  # fmt: skip
    parts = [requests_table(columns(owners, rows), **{**RUN, "policy": f"policy-number-{k}"}) for k in range(4)]
    joined = join_tables(parts)
    assert texts_apart(plots_over_time.latency_over_time(joined)) == []
    assert texts_apart(plots_summary.tail_latency(summarise(joined, horizon_s=200.0, warmup_s=0.0))) == []


def test_plot_result_writes_both_formats_with_stable_bytes(tmp_path, exp1):
    result = Result(*exp1, summarise(exp1[0], horizon_s=90.0, warmup_s=0.0), {})
    first, second = (plot_result(result, tmp_path / name, phases=PHASE) for name in ("one", "two"))
    names = {"latency-over-time", "queue-over-time", "capacity-share", "tail-latency", "refusals"}
    names |= {"fair-share", "fair-share-totals", "debt", "weight"}
    assert {path.name for path in first} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name


def test_plot_result_leaves_out_what_was_not_measured(tmp_path):
    requests = requests_table(columns([spec("a")], [{}]), **RUN)
    timeline = timeline_table([TimelineBlock("pool", "pool", [0.0, 1.0], {"running": [1, 2]})], **RUN)
    paths = plot_result(Result(requests, timeline, [], {}), tmp_path)
    assert {path.stem for path in paths} == {"latency-over-time", "queue-over-time"}


def test_colours_are_the_same_in_every_figure(exp1):
    looks = style.looks_of(*exp1)
    share = plots_over_time.capacity_share(exp1[1])
    faces = {area.get_label(): to_hex(area.get_facecolor()[0][:3]).upper() for area in share.axes[0].collections}
    bars = plots_summary.tail_latency(summarise(exp1[0], horizon_s=90.0, warmup_s=0.0))
    bar_colours = [to_hex(bar.get_facecolor()).upper() for bar in bars.axes[1].patches]
    for i, name in enumerate(["guaranteed-a", "spot-b", "guaranteed-c"]):
        assert faces[name] == looks[name].colour
        assert set(bar_colours[3 * i : 3 * i + 3]) == {looks[name].colour}
    assert all(first != second for first, second in pairwise(sorted(faces.values())))
