//! The list of deliberate bugs, against the code that they are put into and the tests that find them;
//! and the tables of `docs/RELIABILITY.md` that say so.

use crate::census::knows;

/// One entry of `tests/mutants/list`, whose first lines say what its lines mean.
#[derive(Debug, Default)]
pub(crate) struct Mutant {
    pub(crate) name: String,
    removes: String,
    breaks: Vec<String>,
    caught: Vec<String>,
    /// File, text to find, text to put in its place.
    edits: Vec<(String, String, String)>,
}

/// Fewest mutants that the list may have.
const MUTANTS_MIN: usize = 36;
const PROMISES: std::ops::RangeInclusive<u32> = 1..=11;

pub(crate) fn read(list: &str) -> Vec<Mutant> {
    let mut mutants = Vec::<Mutant>::new();
    let (mut file, mut last) = ("", "");
    for line in list.lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "mutant" {
            mutants.push(Mutant {
                name: rest.trim().to_owned(),
                ..Mutant::default()
            });
        }
        let Some(mutant) = mutants.last_mut() else {
            continue;
        };
        let words = || rest.split_whitespace().map(str::to_owned).collect();
        match word {
            "removes" => rest.trim().clone_into(&mut mutant.removes),
            "breaks" => mutant.breaks = words(),
            "caught" => mutant.caught = words(),
            "in" => file = rest.trim(),
            "-" if last == "-" => {
                if let Some((_, find, _)) = mutant.edits.last_mut() {
                    find.push_str(rest);
                }
            }
            "-" => mutant
                .edits
                .push((file.to_owned(), rest.to_owned(), String::new())),
            "+" => {
                if let Some((.., put)) = mutant.edits.last_mut() {
                    put.push_str(rest);
                }
            }
            _ => {}
        }
        last = word;
    }
    mutants
}

/// What is wrong with the list itself, as seen from code and tests.
pub(crate) fn flaws(
    mutants: &[Mutant],
    text_of: impl Fn(&str) -> Option<String>,
    census: &[String],
) -> Vec<String> {
    let (mut found, mut taken) = (vec![], vec![]);
    if mutants.len() < MUTANTS_MIN {
        found.push(format!("only {} mutants", mutants.len()));
    }
    for (n, mutant) in mutants.iter().enumerate() {
        let mut flaw = |what: String| found.push(format!("mutant {}: {what}", mutant.name));
        if mutants
            .iter()
            .take(n)
            .any(|other| other.name == mutant.name)
        {
            flaw("there are two of this name".into());
        }
        if mutant.removes.is_empty() || mutant.breaks.is_empty() || mutant.caught.is_empty() {
            flaw("it does not say what it removes and breaks, and what catches it".into());
        }
        for test in mutant.caught.iter().filter(|test| !knows(census, test)) {
            flaw(format!("there is no test {test}"));
        }
        for (file, find, put) in &mutant.edits {
            let (text, find_bare) = (text_of(file).unwrap_or_default(), without_space(find));
            let bare = without_space(&text);
            let places: Vec<_> = bare.match_indices(&find_bare).map(|(at, _)| at).collect();
            if let [at] = places[..] {
                let end = at + find_bare.len();
                let overlaps = |(other, from, to): &(&str, usize, usize)| {
                    *other == file && *from < end && at < *to
                };
                if taken.iter().any(overlaps) {
                    flaw(format!("in {file} another one replaces `{find}`"));
                }
                taken.push((file, at, end));
            } else {
                flaw(format!("in {file} {} places are `{find}`", places.len()));
            }
            if !put.contains("MUTANT") {
                flaw(format!("it is always on: `{put}`"));
            }
        }
        if mutant.edits.is_empty() {
            flaw("it changes nothing".into());
        }
    }
    found
}

/// What the document says of the mutants and does not fit.
pub(crate) fn unrecorded(mutants: &[Mutant], document: &str) -> Vec<String> {
    let (mut found, mut proven) = (vec![], vec![]);
    let rows = recorded(document);
    for mutant in mutants {
        match rows.iter().find(|(name, _)| *name == mutant.name) {
            None => found.push(format!("mutant {} is not in the table", mutant.name)),
            Some((_, test)) => proven.extend(mutant.breaks.iter().map(|p| (p.as_str(), *test))),
        }
    }
    for (name, _) in &rows {
        if !mutants.iter().any(|mutant| mutant.name == *name) {
            found.push(format!("the table has a mutant {name} that is not there"));
        }
    }
    for number in PROMISES {
        let promise = format!("P{number}");
        let tests = tests_of(document, &promise);
        if !proven
            .iter()
            .any(|(p, test)| *p == promise && tests.contains(test))
        {
            found.push(format!(
                "{promise}: no mutant of it was caught by a test of it"
            ));
        }
    }
    found
}

/// What the document says of the promises and does not fit: each has tests, which are there.
pub(crate) fn unnamed(document: &str, census: &[String]) -> Vec<String> {
    let mut found = vec![];
    for number in PROMISES {
        let tests = tests_of(document, &format!("P{number}"));
        if tests.is_empty() {
            found.push(format!("P{number} has no tests"));
        }
        let missing = tests
            .iter()
            .filter(|test| !census.iter().any(|t| t == *test));
        found.extend(missing.map(|test| format!("P{number}: there is no test {test}")));
    }
    found
}

/// The texts of the promises: items of a list, which may go on in lines that are set in.
pub(crate) fn promises(text: &str) -> Vec<String> {
    let mut found = Vec::<String>::new();
    let mut inside = false;
    for line in text.lines() {
        let line = line.strip_prefix("//! ").unwrap_or(line);
        let goes_on = inside && line.starts_with("  ");
        inside = line.starts_with("* **P") || goes_on;
        if goes_on && let Some(promise) = found.last_mut() {
            promise.push(' ');
            promise.push_str(line.trim());
        } else if inside {
            found.push(line.to_owned());
        }
    }
    // Links lead somewhere in one of the places only.
    found
        .iter()
        .map(|promise| promise.replace("[`", "`").replace("`]", "`"))
        .collect()
}

/// Mutants and the tests that caught them, as recorded.
fn recorded(document: &str) -> Vec<(&str, &str)> {
    let rows = document.split("<!-- mutants: begin -->").nth(1);
    let rows = rows.and_then(|rows| rows.split("<!-- mutants: end -->").next());
    let rows = rows.unwrap_or_default().lines();
    rows.filter_map(|row| Some((code(row).next()?, code(row).last()?)))
        .collect()
}

/// Tests that the table of promises names for this one.
fn tests_of<'a>(document: &'a str, promise: &str) -> Vec<&'a str> {
    let begin = format!("| {promise} |");
    let row = document.lines().find(|line| line.starts_with(&begin));
    row.map_or(vec![], |row| code(row).collect())
}

/// What stands between backticks.
fn code(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

fn without_space(text: &str) -> String {
    text.split_whitespace().collect()
}

#[test]
fn a_rotten_list_is_found() {
    let list = "\
# what this is
mutant good
removes  a check
breaks   P1 P2
caught   crash crash::a
in a.rs
- if x
-     == y {
+ if MUTANT || x == y {
mutant rotten
removes  a check
breaks   P1
caught   crash::gone
in a.rs
- gone();
+ now_and_always();
mutant good
";
    let mutants = read(list);
    assert_eq!((mutants.len(), mutants[0].breaks.len()), (3, 2));
    let census = ["crash::a".to_owned()];
    let text = |file: &str| (file == "a.rs").then(|| "fn f() { if x == y { g() } }".to_owned());
    let flaws = flaws(&mutants, text, &census);
    let of = |what: &str| flaws.iter().filter(|flaw| flaw.contains(what)).count();
    assert_eq!(of("only 3 mutants"), 1, "{flaws:?}");
    assert_eq!(of("no test crash::gone"), 1);
    assert_eq!(of("0 places are `gone();`"), 1);
    assert_eq!(of("it is always on"), 1);
    assert_eq!((of("two of this name"), of("it changes nothing")), (1, 1));
    assert_eq!(of("mutant rotten"), 3);
}

#[test]
fn promises_are_read_to_their_ends() {
    let code = "//! * **P1** All\n//!   of [`it`].\n//! * **P2** More.\n//!\n//!   Not this.\n";
    let document = "* **P1** All of\n  `it`.\n* **P2** More.\nNor this.";
    let expected = ["* **P1** All of `it`.", "* **P2** More."];
    assert_eq!(promises(code), expected);
    assert_eq!(promises(document), expected);
}

#[test]
fn a_document_that_says_something_else_is_found() {
    let rows: Vec<_> = PROMISES
        .map(|n| format!("| P{n} | `crash::a`, `crash::b` |\n"))
        .collect();
    let table = "<!-- mutants: begin -->\n| `m`: a check | P1 | `crash::a` | 0.1 |\n\
                 | `other`: it | P2 | `crash::c` | 0.1 |\n<!-- mutants: end -->\n";
    let document = rows.concat() + table;
    let mutant = |name: &str| Mutant {
        name: name.to_owned(),
        breaks: PROMISES.map(|n| format!("P{n}")).collect(),
        ..Mutant::default()
    };
    assert_eq!(
        unrecorded(&[mutant("m"), mutant("other")], &document),
        [""; 0]
    );
    let found = unrecorded(&[mutant("other"), mutant("new")], &document);
    assert_eq!(found.len(), 2 + 11, "{found:?}");
    assert_eq!(found[0], "mutant new is not in the table");
    let census = ["crash::a".to_owned()];
    assert_eq!(unnamed(&document, &census).len(), 11);
    assert_eq!(unnamed(table, &census)[0], "P1 has no tests");
}
