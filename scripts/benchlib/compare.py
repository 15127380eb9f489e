"""Everything in one table: first full, unchanged, 1 % of rows changed, restore, beside four peers."""

import time

from .data import ROWS_PER_SCALE, SETTLE_SECONDS, Cluster, make_n8n, make_ollama
from .measure import MB, need_space, say, tree_size
from .report import describe_machine
from .tools import borg, gzip, lifeboat, newest_restic, restic, versions, zstd

def compare(work, binary, options):
    """The running stack's data in one repository of each tool."""
    need_space(work, (options.scale * 16 * MB + options.model * MB + options.files * 40_000) * 8)
    machine = describe_machine(work)
    data = work / "data"
    say("making the data")
    make_n8n(data / "n8n", options.files)
    make_ollama(data / "ollama", options.model * MB)
    program, results = newest_restic(), {}
    with Cluster(data / "postgres", work / "socket") as cluster:
        tools = [lifeboat(work, binary, cluster), zstd(work, 0), gzip(work), restic(work, program), borg(work)]
        cluster.fill(options.scale)
        for phase, change in phases(options.scale * ROWS_PER_SCALE):
            cluster.sql(*change, "CHECKPOINT")
            time.sleep(SETTLE_SECONDS)
            results[phase] = {tool.key: tool.measure_backup(data) for tool in tools}
        results["restore"] = {tool.key: tool.measure_restore(data) for tool in tools}
        parts = [*sorted(data.iterdir()), data / "postgres/pg_wal"]
    report = {
        "machine": machine,
        "versions": versions(binary, ["tar", "zstd", "gzip", "borg", program], cluster),
        "data_bytes": {str(part.relative_to(data)): tree_size(part) for part in parts},
        "results": results,
        "cache_bytes": {tool.key: tree_size(tool.cache) for tool in tools if any(tool.cache.iterdir())},
    }
    print(render(report, tools))
    return report


def phases(rows):
    update = "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE "
    return [
        ("first full", []),
        ("unchanged", []),
        ("1 % of rows changed, in one place", [update + f"aid BETWEEN {rows // 2 + 1} AND {rows // 2 + rows // 100}"]),
        ("1 % of rows changed, spread evenly", [update + "aid % 100 = 7"]),
    ]


MEASURES = [
    ("time", "wall", lambda n: f"{n:.1f} s"),
    ("CPU", "cpu", lambda n: f"{n:.1f} s"),
    ("peak memory", "peak_bytes", lambda n: f"{n / MB:.0f} MB"),
    ("newly stored", "stored_bytes", lambda n: f"{n / MB:.1f} MB" if n >= MB / 10 else f"{n / 1000:.0f} KB"),
]


def render(report, tools):
    lines = [
        "Each cell: Lifeboat ÷ peer (below 1, Lifeboat needs less), and in brackets the peer's own figure.",
        "",
        "| | | " + " | ".join(tool.name for tool in tools) + " |",
        "|---|---|" + "--:|" * len(tools),
    ]
    for phase, results in report["results"].items():
        own, title = results["lifeboat"], phase
        for label, key, shown in MEASURES:
            if key in own:
                cells = [ratio(own, results[tool.key], key, shown) for tool in tools[1:]]
                lines.append(f"| {title} | {label} | {shown(own[key])} | " + " | ".join(cells) + " |")
                title = ""
    return "\n".join([*lines, "", *remarks(report)])


def ratio(own, peer, key, shown):
    bound = key == "peak_bytes" and peer["peak_is_bound"]
    value = own[key] / peer[key] if peer[key] else float("inf")
    digits = 2 if value >= 0.1 else 4
    return f"{'> ' if bound else ''}{value:.{digits}f} ({'< ' if bound else ''}{shown(peer[key])})"


def remarks(report):
    def listed(sizes):
        return ", ".join(f"{name} {size / MB:.1f} MB" for name, size in sizes.items())

    own = {phase: result["lifeboat"] for phase, result in report["results"].items()}
    read = {phase: result["read_bytes"] for phase, result in own.items() if "read_bytes" in result}
    return [
        f"- Data: {listed(report['data_bytes'])}; in the page cache before every run.",
        f"- Machine: {report['machine']}.",
        "- Versions: " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + ".",
        "- restic always encrypts; Lifeboat, borg (`--encryption none --compression zstd,3`) and tar do not here."
        " tar has no increments. Lifeboat, restic and borg sync backups to disk; restores only Lifeboat.",
        "- Lifeboat copies the running cluster through its backup interface and decodes every new byte once before it"
        " counts; the peers copy files that only an idle cluster leaves consistent. Every restore was compared with"
        " its source.",
        "- CPU is user and system time of all of a tool's processes, peak memory the resident size of the largest.",
        f"- Read of the data by Lifeboat: {listed(read)}.",
        f"- Caches beside the repositories, in the end: {listed(report['cache_bytes'])}.",
    ]
