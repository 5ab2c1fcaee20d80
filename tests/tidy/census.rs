//! Which tests there are, by name: `binary::modules::function`. Unit tests of a library stand under
//! the library's short name (`core`, `backends`).

/// Names of all tests in these files.
pub(crate) fn census<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    files
        .flat_map(|(path, text)| {
            let place = place(path).unwrap_or_default();
            tests_in(text)
                .into_iter()
                .map(move |test| format!("{place}::{test}"))
        })
        .collect()
}

/// Whether a test is called this, or stands in a module or binary that is.
pub(crate) fn knows(census: &[String], name: &str) -> bool {
    let behind = |test: &String| {
        let rest = test.strip_prefix(name)?;
        Some(rest.is_empty() || rest.starts_with("::"))
    };
    census.iter().filter_map(behind).any(|fits| fits)
}

/// Binary and modules of the file at `path`; `None` for one that has no tests of its own.
fn place(path: &str) -> Option<String> {
    let roots = [
        ("core/src/", "core::"),
        ("backends/src/", "backends::"),
        ("core/tests/", ""),
        ("cli/tests/", ""),
        ("benches/workloads/tests/", ""),
        ("tests/powercut/tests/", ""),
        ("tests/powercut/src/", "powercut_disk::"),
        ("tests/support/src/", "testkit::"),
        ("tests/", ""),
    ];
    let (rest, library) = roots
        .iter()
        .find_map(|(root, library)| Some((path.strip_prefix(root)?, library)))?;
    let modules: Vec<_> = rest
        .trim_end_matches(".rs")
        .split('/')
        .filter(|module| !["main", "mod", "lib"].contains(module))
        .collect();
    Some(format!("{library}{}", modules.join("::")))
}

/// Functions with a test attribute, behind the modules of the file that they stand in. The formatter
/// has been over the file: a block ends where a brace stands as far in as its first line.
fn tests_in(text: &str) -> Vec<String> {
    let (mut found, mut modules, mut is_test) = (vec![], Vec::<(usize, &str)>::new(), false);
    for line in text.lines() {
        let depth = line.len() - line.trim_start().len();
        let code = line.trim();
        if code == "}" && modules.last().is_some_and(|(at, _)| *at == depth) {
            modules.pop();
        }
        let opened = code.split("mod ").nth(1).filter(|_| code.ends_with('{'));
        if let Some(name) = opened.filter(|_| code.starts_with("mod ") || code.contains(" mod ")) {
            modules.push((depth, name.trim_end_matches([' ', '{'])));
        }
        if code.starts_with("#[") && (code.contains("test]") || code.contains("::test(")) {
            is_test = true;
        } else if let Some(name) = code.split("fn ").nth(1).filter(|_| is_test) {
            let name = name.split(['(', '<']).next().unwrap_or(name);
            let path = modules.iter().map(|(_, module)| *module).chain([name]);
            found.push(path.collect::<Vec<_>>().join("::"));
            is_test = false;
        }
    }
    found
}

#[test]
fn tests_are_found_in_their_modules() {
    let text = "\
fn helper() {}
#[test]
fn first() {
    nothing();
}
mod inner {
    #[tokio::test(flavor = \"multi_thread\")]
    async fn second() {}
}
#[test]
#[cfg(unix)]
fn third() {}
";
    let found = census([("tests/crash/damage.rs", text)].into_iter());
    assert_eq!(
        found,
        [
            "crash::damage::first",
            "crash::damage::inner::second",
            "crash::damage::third"
        ]
    );
    for name in ["crash", "crash::damage", "crash::damage::inner::second"] {
        assert!(knows(&found, name), "{name}");
    }
    for name in ["cras", "crash::damage::fir", "crash::damage::first::x"] {
        assert!(!knows(&found, name), "{name}");
    }
    let unit = "#[cfg(test)]\nmod tests {\n    #[test]\n    fn one() {}\n}\n";
    let found = census([("core/src/commit/mod.rs", unit)].into_iter());
    assert_eq!(found, ["core::commit::tests::one"]);
}
