//! Every error is reached by a test. Tests that see errors as values keep lists of those that they have
//! reached; here the lists are held against the code, so that a new error needs a test.

/// Enums of errors: the file of the enum, its name, the file of the test, and the list in it. The test
/// fails when it does not reach all that the list names.
const LISTED: [(&str, &str, &str, &str); 9] = [
    ("core/src/error.rs", "Error", ERRORS, "ALL"),
    ("core/src/error.rs", "ErrorClass", ERRORS, "CLASSES"),
    ("core/src/error.rs", "CorruptionKind", ERRORS, "CORRUPTIONS"),
    ("core/src/bridge/blocking.rs", "PoolError", ERRORS, "POOL"),
    ("core/src/format/error.rs", "FormatError", FORMAT, "FORMAT"),
    ("core/src/format/error.rs", "RecordFault", FORMAT, "RECORD"),
    ("core/src/format/error.rs", "EncodeError", FORMAT, "ENCODE"),
    ("core/src/format/walk.rs", "WalkFault", FORMAT, "WALK"),
    ("benches/workloads/src/error.rs", "Error", SESSION, "ERRORS"),
];

const ERRORS: &str = "tests/contract/errors.rs";
const FORMAT: &str = "core/tests/format/errors.rs";
const SESSION: &str = "benches/workloads/tests/session.rs";

/// Enums of failures whose variants are named one by one below.
const BY_VARIANT: [(&str, &str); 2] = [
    ("cli/src/failure.rs", "Failure"),
    ("backends/src/sim/executor.rs", "Stop"),
];

/// Errors that are structs, and variants of [`BY_VARIANT`], each with a test that reaches it.
const NAMED: [(&str, &str); 14] = [
    ("IoError", "contract::errors::every_error_is_reached"),
    ("TryAppendError", "contract::errors::every_error_is_reached"),
    ("WalkError", "format::errors::every_error_is_reached"),
    (
        "UnknownBackend",
        "backends::kind::tests::names_round_trip_when_compiled_and_are_explained_otherwise",
    ),
    (
        "ResolveError",
        "conformance::denied_io_uring::the_probe_explains_and_auto_takes_the_other",
    ),
    ("CannotPin", "conformance::tokio::on_disk"),
    (
        "Stop::Stuck",
        "backends::sim::tests::schedule::a_hang_is_found",
    ),
    (
        "Stop::Crashed",
        "backends::sim::tests::crash::a_scripted_crash_stops_the_run_and_keeps_what_was_acknowledged",
    ),
    (
        "Stop::TooLong",
        "backends::sim::tests::schedule::endless_polling_is_found",
    ),
    ("Failure::Store", "cli::refusals::a_file_is_not_a_store"),
    (
        "Failure::Io",
        "cli::refusals::partitions_and_inputs_that_are_not_there_are_named",
    ),
    (
        "Failure::Output",
        "cli::refusals::an_output_that_is_full_is_told",
    ),
    (
        "Failure::Compare",
        "cli::compare::arguments_that_cannot_be_right_are_named",
    ),
    (
        "Failure::Other",
        "cli::refusals::partitions_and_inputs_that_are_not_there_are_named",
    ),
];

/// Every setting of a store is out of its range in a test, or listed as one that cannot be.
const SETTINGS: (&str, &str, &str, [&str; 2]) = (
    "core/src/config.rs",
    "StoreConfig",
    "tests/contract/settings.rs",
    ["BOUNDED", "FREE"],
);

/// Errors of the code that no test reaches, and lists that name others.
pub(crate) fn unreached(
    files: &[(String, String)],
    text_of: impl Fn(&str) -> Option<String>,
    census: &[String],
) -> Vec<String> {
    let mut found = vec![];
    for (file, name, test, list) in LISTED {
        let code = members(&text_of(file).unwrap_or_default(), "enum", name);
        let reached = strings(&text_of(test).unwrap_or_default(), list);
        found.extend(differences(
            &format!("{file}: {name}"),
            test,
            &code,
            &reached,
        ));
    }
    let (file, name, test, lists) = SETTINGS;
    let settings = members(&text_of(file).unwrap_or_default(), "struct", name);
    let text = text_of(test).unwrap_or_default();
    let tried: Vec<_> = lists.iter().flat_map(|list| strings(&text, list)).collect();
    found.extend(differences(
        &format!("{file}: {name}"),
        test,
        &settings,
        &tried,
    ));
    let variants = BY_VARIANT.iter().flat_map(|(file, name)| {
        let members = members(&text_of(file).unwrap_or_default(), "enum", name);
        let variants = members.into_iter();
        variants.map(move |member| format!("{name}::{member}"))
    });
    let kinds = files
        .iter()
        .flat_map(|(path, text)| error_types(path, text));
    for kind in kinds.chain(variants) {
        let listed = LISTED.iter().any(|(_, name, ..)| *name == kind);
        let listed = listed || BY_VARIANT.iter().any(|(_, name)| *name == kind);
        if !listed && !NAMED.iter().any(|(name, _)| *name == kind) {
            found.push(format!("{kind} has no test that reaches it"));
        }
    }
    for (name, test) in NAMED {
        if !census.iter().any(|t| t == test) {
            found.push(format!("{name}: there is no test {test}"));
        }
    }
    found
}

fn differences(what: &str, test: &str, code: &[String], reached: &[String]) -> Vec<String> {
    let mut found = vec![];
    if code.is_empty() {
        found.push(format!("{what} was not found"));
    }
    for member in code.iter().filter(|member| !reached.contains(member)) {
        found.push(format!("{what} has {member}, which {test} does not reach"));
    }
    for member in reached.iter().filter(|member| !code.contains(member)) {
        found.push(format!("{what} has no {member}, which {test} lists"));
    }
    found
}

/// Variants of an enum or fields of a struct, as the formatter lays them out.
fn members(text: &str, kind: &str, name: &str) -> Vec<String> {
    let begin = format!("{kind} {name} {{");
    let lines = text.lines().skip_while(|line| !line.ends_with(&begin));
    let inside = lines.skip(1).take_while(|line| *line != "}");
    let direct = inside.filter_map(|line| line.strip_prefix("    "));
    let named = direct.filter_map(|line| {
        let line = line.strip_prefix("pub ").unwrap_or(line);
        line.starts_with(char::is_alphabetic).then(|| {
            let end = line.find(|c: char| !c.is_alphanumeric() && c != '_');
            line[..end.unwrap_or(line.len())].to_owned()
        })
    });
    named.collect()
}

/// The strings of a constant list.
fn strings(text: &str, list: &str) -> Vec<String> {
    let begin = format!("const {list}:");
    let Some(at) = text.find(&begin) else {
        return vec![];
    };
    let value = text[at..].split('=').nth(1).unwrap_or_default();
    let value = value.split("];").next().unwrap_or_default();
    value
        .split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// Public types of the libraries that are errors.
fn error_types(path: &str, text: &str) -> Vec<String> {
    let is_library = path.contains("/src/") && !path.starts_with("tests/");
    let (mut found, mut derives) = (vec![], false);
    for line in text.lines().filter(|_| is_library) {
        let implemented = line
            .strip_prefix("impl std::error::Error for ")
            .and_then(|rest| rest.strip_suffix(" {}").or(rest.strip_suffix(" {")));
        let declared = ["pub enum ", "pub struct "]
            .iter()
            .find_map(|begin| line.strip_prefix(begin))
            .filter(|_| derives);
        let name = implemented.or(declared);
        found.extend(name.map(|name| name.trim_end_matches([' ', '{', ';']).to_owned()));
        derives = line.starts_with("#[derive(") && line.contains("Error")
            || derives && line.starts_with("#[")
            || derives && line.starts_with("///");
    }
    found
}

#[test]
fn an_error_without_a_test_is_found() {
    let text = "\
/// An error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Broken {
    /// One.
    #[error(\"one\")]
    One,
    /// Two.
    Two {
        /// Inside.
        what: u8,
    },
    Three(#[from] Other),
}
impl std::error::Error for Second {}
pub enum Harmless {
    Four,
}
";
    assert_eq!(members(text, "enum", "Broken"), ["One", "Two", "Three"]);
    assert_eq!(error_types("core/src/a.rs", text), ["Broken", "Second"]);
    let test = "const LIST: [&str; 2] = [\"One\", \"Four\"];\nconst B: [&str; 1] = [\"x\"];\n";
    assert_eq!(strings(test, "LIST"), ["One", "Four"]);
    let found = differences(
        "Broken",
        "a test",
        &members(text, "enum", "Broken"),
        &strings(test, "LIST"),
    );
    assert_eq!(found.len(), 3, "{found:?}");
    let found = differences("Gone", "a test", &members(text, "enum", "Gone"), &[]);
    assert_eq!(found, ["Gone was not found"]);
}
