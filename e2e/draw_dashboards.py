#!/usr/bin/env python3
"""Draws the chart's dashboards as SVG, with what a Prometheus answers to their expressions now.

    draw_dashboards.py URL FOLDER NAMESPACE NAME     one file for each dashboard, of the Cluster NAME in NAMESPACE

Grafana draws them more beautifully, and needs a browser. What is asked, where it stands and in which unit is theirs.
"""
import html, json, math, pathlib, re, sys, time, urllib.parse, urllib.request

BOARDS = pathlib.Path(__file__).resolve().parent.parent / "charts/giantnetes/files/dashboards"
COLUMN, ROW, GAP = 50, 34, 8
LONGEST = 600
COLOURS = ["#3274d9", "#56a64b", "#e0a22e", "#c4162a", "#8f3bb8", "#37872d", "#fa6400", "#0e8c8c", "#705da0", "#7c7c7c"]


def ask(url, path, **parameters):
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
        return json.load(answer)["data"]["result"]


def legend(target, labels):
    text = target.get("legendFormat") or ""
    for label, value in labels.items():
        text = text.replace("{{%s}}" % label, value)
    return text


def human(value, unit):
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        for name, size in [("d", 86400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3), ("µs", 1e-6)]:
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return "0 s"
    for name, size in [("G", 1e9), ("M", 1e6), ("k", 1e3)]:
        if abs(value) >= size:
            return f"{value / size:.3g} {name}{'B' if unit == 'bytes' else ''}"
    return f"{value:.3g}" + {"bytes": " B", "reqps": "/s", "ops": "/s"}.get(unit, "")


def text(x, y, words, size=12, colour="#333", anchor="start", weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
            f'font-weight="{weight}">{html.escape(str(words))}</text>')


def stat(url, panel, box, values):
    x, y, width, height = box
    unit = panel["fieldConfig"]["defaults"].get("unit")
    series = [(target, one) for target in panel["targets"] for one in ask(url, "query", query=fill(target["expr"], values))]
    if not series:
        shown = "no data"
    elif panel.get("options", {}).get("textMode") == "name":
        shown = legend(*[(target, one["metric"]) for target, one in series][0])
    else:
        shown = human(float(series[0][1]["value"][1]), unit)
    return [text(x + width / 2, y + height / 2 + 22, shown, 26, "#1f60c4", "middle", "bold")]


def table(url, panel, box, values):
    x, y, width, height = box
    unit = panel["fieldConfig"]["defaults"].get("unit")
    rows = [one for target in panel["targets"] for one in ask(url, "query", query=fill(target["expr"], values))]
    lines = [" · ".join([*one["metric"].values(), human(float(one["value"][1]), unit)]) for one in rows]
    room = int((height - 40) / 16)
    return [text(x + 10, y + 44 + 16 * number, line) for number, line in enumerate((lines or ["none"])[:room])]


def timeseries(url, panel, box, values):
    x, y, width, height = box
    unit, now = panel["fieldConfig"]["defaults"].get("unit"), time.time()
    # As far back as there is something.
    first = ask(url, "query", query=f"min(min_over_time(timestamp(up)[{LONGEST}s:5s]))")
    span = max(now - float(first[0]["value"][1]), 30)
    series = [
        (legend(target, one["metric"]), [(float(at), float(value)) for at, value in one["values"] if value != "NaN"])
        for target in panel["targets"]
        for one in ask(url, "query_range", query=fill(target["expr"], values), start=now - span, end=now, step=max(span / 60, 1))
    ]
    if not any(points for _, points in series):
        return [text(x + width / 2, y + height / 2, "none", 14, "#999", "middle")]
    rows = math.ceil(min(len(series), 12) / 3)
    left, right, top, bottom = x + 62, x + width - 12, y + 32, y + height - 24 - 15 * rows
    everything = [value for _, points in series for _, value in points]
    least = min(0, min(everything))
    most = max(everything) if max(everything) > least else least + 1
    out = []
    for part in range(5):
        level = bottom - (bottom - top) * part / 4
        out.append(f'<line x1="{left}" x2="{right}" y1="{level:.1f}" y2="{level:.1f}" stroke="#e4e4e4"/>')
        out.append(text(left - 6, level + 4, human(least + (most - least) * part / 4, unit), 10, "#777", "end"))
    out += [text(left, bottom + 14, f"{human(span, 's')} ago", 10, "#777"), text(right, bottom + 14, "now", 10, "#777", "end")]
    for number, (name, points) in enumerate(series[:12]):
        colour = COLOURS[number % len(COLOURS)]
        spot = lambda at, value: (left + (at - now + span) / span * (right - left), bottom - (value - least) / (most - least) * (bottom - top))
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (spot(*point) for point in points))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        place = (x + 14 + (number % 3) * (width - 20) / 3, bottom + 30 + 15 * (number // 3))
        out.append(f'<rect x="{place[0]:.1f}" y="{place[1] - 8:.1f}" width="10" height="4" fill="{colour}"/>')
        out.append(text(place[0] + 14, place[1], name[: int(width / 21)], 10))
    return out


def fill(expression, values):
    return re.sub(r"\$(\w+)", lambda found: values.get(found[1], found[0]), expression)


def draw(url, board, values):
    kinds = {"stat": stat, "table": table, "timeseries": timeseries}
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    width, height = 24 * COLUMN, bottom * ROW + 50
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
           f'<rect width="{width}" height="{height}" fill="#f4f5f5"/>', text(12, 32, board["title"], 20, "#222", weight="bold")]
    for panel in board["panels"]:
        place = panel["gridPos"]
        box = (place["x"] * COLUMN + GAP / 2, place["y"] * ROW + 46, place["w"] * COLUMN - GAP, place["h"] * ROW - GAP)
        out.append('<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="3" fill="#fff" stroke="#dcdcdc"/>' % box)
        # A bold letter is about two thirds as wide as it is high.
        size = min(13, (box[2] - 20) / len(panel["title"]) / 0.65)
        out.append(text(box[0] + 10, box[1] + 20, panel["title"], f"{size:.3g}", "#222", weight="bold"))
        out += kinds[panel["type"]](url, panel, box, values)
    return "\n".join([*out, "</svg>\n"])


def main():
    url, folder, namespace, name = sys.argv[1:]
    for file in sorted(BOARDS.glob("*.json")):
        picture = draw(url, json.loads(file.read_text()), {"namespace": namespace, "name": name})
        (pathlib.Path(folder) / f"{file.stem}.svg").write_text(picture)
        print(f"{file.stem}.svg: {len(picture)} bytes")


if __name__ == "__main__":
    main()
