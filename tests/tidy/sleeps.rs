//! No test sleeps to be right: where the time of the real clock passes in a test, the reason stands
//! here. Waiting on the simulation costs no time and is exact, so it is not looked at.

/// Files of tests in which real time passes, in how many lines, and why nothing depends on how much.
const REASONED: [(&str, usize, &str); 22] = [
    (
        "cli/tests/cli/round_trip.rs",
        1,
        "looks for a condition again, until a deadline",
    ),
    (
        "backends/src/glommio/turn.rs",
        2,
        "lets a loop fall asleep whose sleep is the subject; a task that stands still is the other's",
    ),
    (
        "cli/src/stress/mod.rs",
        2,
        "the subject: a store that stops; looks for a condition again, as long as the load runs",
    ),
    (
        "tests/conformance/registered.rs",
        1,
        "looks for a lock again; the suite has a deadline",
    ),
    (
        "tests/conformance/wakes.rs",
        1,
        "a load: timers that end the sleeps of an event loop",
    ),
    (
        "tests/contract/cancellation_real.rs",
        2,
        "looks for a condition again, until a deadline",
    ),
    (
        "tests/support/src/stress/omit.rs",
        1,
        "a fault: a disk whose writes begin late",
    ),
    (
        "tests/contract/inputs.rs",
        1,
        "looks for a file again, as long as its maker lives",
    ),
    (
        "tests/full_disk/disk.rs",
        2,
        "asks the system again while a device is busy, so many times",
    ),
    (
        "tests/kill9/main.rs",
        1,
        "the subject: a kill at a random moment",
    ),
    (
        "tests/powercut/src/mount.rs",
        1,
        "asks the system again while a mount is busy, so many times",
    ),
    (
        "tests/powercut/src/volume.rs",
        1,
        "asks the system again while a mount is busy, so many times",
    ),
    (
        "tests/support/src/io_conformance/cancellation.rs",
        3,
        "looks for a condition again, until a deadline; sleeping is the subject of the others",
    ),
    (
        "tests/support/src/io_conformance/shards.rs",
        5,
        "tasks that would outlive the check by an hour; looks again, so many times; time for the \
         kernel to do what it must not",
    ),
    (
        "tests/support/src/io_conformance/tasks.rs",
        7,
        "sleeping is the subject: that it ends, in order, not early, and costs nothing",
    ),
    (
        "tests/support/src/store_conformance/hosts.rs",
        1,
        "how the checks wait on a real clock",
    ),
    (
        "tests/support/src/store_conformance/mod.rs",
        1,
        "looks for a condition again, so many times",
    ),
    (
        "tests/support/src/store_conformance/reads.rs",
        1,
        "time for files to be reused that must not be",
    ),
    (
        "tests/support/src/store_conformance/removal.rs",
        3,
        "time for retention to remove what it must not",
    ),
    (
        "tests/support/src/store_conformance/waiting.rs",
        1,
        "time for a wake that must not come",
    ),
    (
        "tests/support/src/stress/mod.rs",
        1,
        "looks for a lock again, so many times",
    ),
    (
        "tests/support/src/stress/writer.rs",
        1,
        "a load: pauses between its requests",
    ),
];

/// Lines of tests in which real time passes without a reason, and reasons without such lines.
pub(crate) fn unreasoned(path: &str, text: &str) -> Vec<String> {
    unreasoned_by(&REASONED, path, text)
}

fn unreasoned_by(reasoned: &[(&str, usize, &str)], path: &str, text: &str) -> Vec<String> {
    let allowed = reasoned.iter().find(|(file, ..)| *file == path);
    let allowed = allowed.map_or(0, |(_, lines, _)| *lines);
    let found: Vec<_> = sleeping_lines(path, text).collect();
    if found.len() == allowed {
        return vec![];
    }
    let lines = found
        .iter()
        .map(|(number, line)| format!("\n  {number}: {}", line.trim()));
    vec![format!(
        "{path}: real time passes in {} lines, {allowed} are reasoned for{}",
        found.len(),
        lines.collect::<String>()
    )]
}

fn sleeping_lines<'a>(path: &'a str, text: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
    let is_test = path.starts_with("tests/") || path.contains("/tests/");
    let begin = match text.find("#[cfg(test)]") {
        _ if is_test => 0,
        Some(at) => at,
        None => text.len(),
    };
    let before = text.get(..begin).unwrap_or_default().lines().count();
    let tests = text.get(begin..).unwrap_or_default();
    // These rules name what they forbid, and the simulation sleeps in its own time.
    let exempt = path.starts_with("tests/tidy/") || path.starts_with("backends/src/sim/");
    (before + 1..).zip(tests.lines()).filter(move |(_, line)| {
        let code = line.split("//").next().unwrap_or(line);
        let sleeps = calls(code, "sleep") || code.contains("host.pause(");
        let declares = code.contains("fn ");
        !exempt && sleeps && !declares && !code.contains("sim.sleep(")
    })
}

/// Whether a function of exactly this name is called.
fn calls(code: &str, name: &str) -> bool {
    let call = format!("{name}(");
    code.match_indices(&call).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '_')
    })
}

#[test]
fn a_sleep_without_a_reason_is_found() {
    let reasoned = [("tests/a.rs", 1, "because")];
    let count = |path: &str, text: &str| unreasoned_by(&reasoned, path, text).len();
    let sleep = "fn f() {\n    std::thread::sleep(TIME);\n}\n";
    assert_eq!(count("tests/a.rs", sleep), 0);
    assert_eq!(count("tests/a.rs", &sleep.repeat(2)), 1);
    assert_eq!(count("tests/a.rs", ""), 1, "a reason for nothing");
    assert_eq!(count("tests/b.rs", sleep), 1);
    assert_eq!(count("core/tests/format/b.rs", sleep), 1);
    assert_eq!(count("tests/b.rs", "sim.sleep(TIME).await;\n"), 0);
    assert_eq!(count("tests/b.rs", "ctx.host.pause(TIME).await;\n"), 1);
    assert_eq!(count("tests/b.rs", "hub.fall_asleep();\n"), 0);
    assert_eq!(count("tests/b.rs", "// no sleep(TIME) here\n"), 0);
    assert_eq!(count("core/src/a.rs", sleep), 0, "the engine may");
    let unit = format!("{sleep}#[cfg(test)]\nmod tests {{ {sleep} }}\n");
    assert_eq!(count("core/src/a.rs", &unit), 1, "its unit tests may not");
}
