from dcpo_async.evaluation.figures import Figures
from dcpo_async.evaluation.statistics import Estimate
from dcpo_async.evaluation.table import Row, markdown

GREEDY = Figures(1, Estimate(0.5, 0.25, 0.75), {1: 0.5}, 120.0, 0.1, 0.02)
SAMPLED = Figures(4, Estimate(0.4321, 0.25, 0.5), {1: 0.4321, 2: 0.6, 4: 0.8}, 131.26, 0.2, 0.0)


def test_the_tables_are_markdown() -> None:
    assert markdown([Row("base", "aime24", 30, GREEDY, SAMPLED)]) == (
        "| model | set    | problems |    Avg@1 (greedy) |             Avg@4 | pass@2 | pass@4 |\n"
        "|-------|--------|----------|-------------------|-------------------|--------|--------|\n"
        "| base  | aime24 |       30 | 50.0 [25.0, 75.0] | 43.2 [25.0, 50.0] |   60.0 |   80.0 |\n"
        "\n"
        "| model | set    | problems |    mode | responses | tokens | truncated | no answer |\n"
        "|-------|--------|----------|---------|-----------|--------|-----------|-----------|\n"
        "| base  | aime24 |       30 |  greedy |        30 |  120.0 |      10.0 |       2.0 |\n"
        "| base  | aime24 |       30 | sampled |       120 |  131.3 |      20.0 |       0.0 |\n"
    )


def test_a_mode_that_nobody_used_has_no_column() -> None:
    greedy_alone = markdown([Row("base", "aime24", 30, GREEDY, None)])
    sampled_alone = markdown([Row("base", "aime24", 30, None, SAMPLED)])
    assert "Avg@4" not in greedy_alone
    assert "pass@" not in greedy_alone
    assert "greedy" not in sampled_alone


def test_a_wide_table_is_not_broken_and_names_are_taken_literally() -> None:
    name = "runs/" + "x" * 300 + "[bold]"
    lines = markdown([Row(name, "aime24", 30, GREEDY, SAMPLED)]).splitlines()
    assert lines[2].startswith(f"| {name} | aime24 ")
    assert len({len(line) for line in lines[:3]}) == 1
