"""What Helm makes of a chart: ``build/helm/bin/python tests/deploy/helm_says.py FOLDER`` (``make helm``).

It runs in an environment of its own, which has Helm's library and nothing of ours. Stdin has a line of JSON for each
set of values; stdout gets what the linter says to the first, and of each the rendered files, or the error.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import helm_python


def main(folder: str) -> None:
    """Lint and render."""
    asked = [json.loads(line) for line in sys.stdin]
    made: list[dict[str, Any]] = []
    with helm_python.Chart.load(folder) as chart:
        for values in asked:
            try:
                chart.validate_schema(values)
                rendered = chart.render(values, name="x")
                made.append({name.rpartition("/")[2]: text for name, text in rendered.items()})
            except helm_python.HelmError as error:
                made.append({"error": str(error)})
    sys.stdout.write(json.dumps({"lint": helm_python.lint(folder, asked[0], strict=True), "made": made}))


if __name__ == "__main__":
    main(sys.argv[1])
