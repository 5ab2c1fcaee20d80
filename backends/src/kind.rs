//! Which backend: a name in a configuration, made into a choice that works here.

use std::fmt;
use std::str::FromStr;

use crate::probe::{ProbeResult, probe_kind};

/// A backend by name. Every name is known in every build; whether its code was compiled in is
/// [`is_compiled`](Self::is_compiled).
///
/// ```
/// use alluvium_backends::BackendKind;
/// assert_eq!("auto".parse(), Ok(BackendKind::Auto));
/// assert!("tokyo".parse::<BackendKind>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum BackendKind {
    /// The best that works on this machine; see [`resolve`](Self::resolve).
    #[default]
    Auto,
    /// The `tokio` module.
    Tokio,
    /// The `compio` module.
    Compio,
    /// The `uring` module.
    Uring,
    /// The `glommio` module.
    Glommio,
}

impl BackendKind {
    /// The backends that stand for themselves, best first. glommio stands behind tokio, which works
    /// everywhere: its wakes from other threads wait for its own turns, so it is taken only when it
    /// is asked for.
    pub const CONCRETE: [Self; 4] = [Self::Uring, Self::Compio, Self::Tokio, Self::Glommio];

    /// The name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tokio => "tokio",
            Self::Compio => "compio",
            Self::Uring => "uring",
            Self::Glommio => "glommio",
        }
    }

    /// Whether this build contains it; [`Auto`](Self::Auto) needs at least one other.
    pub const fn is_compiled(self) -> bool {
        match self {
            Self::Auto => cfg!(any(
                feature = "tokio",
                feature = "compio",
                feature = "glommio",
                feature = "uring"
            )),
            Self::Tokio => cfg!(feature = "tokio"),
            Self::Compio => cfg!(feature = "compio"),
            Self::Uring => cfg!(feature = "uring"),
            Self::Glommio => cfg!(feature = "glommio"),
        }
    }

    /// Tries the backend out, or with [`Auto`](Self::Auto) all of them, best first, until one
    /// works.
    pub fn resolve(self) -> Result<Resolved, ResolveError> {
        let candidates = match self {
            Self::Auto => &Self::CONCRETE[..],
            Self::Tokio => &[Self::Tokio],
            Self::Compio => &[Self::Compio],
            Self::Uring => &[Self::Uring],
            Self::Glommio => &[Self::Glommio],
        };
        let mut passed_over = Vec::new();
        for &kind in candidates {
            let result = probe_kind(kind);
            if result.works {
                let why = reason(self, &result, &passed_over);
                return Ok(Resolved { kind, why });
            }
            passed_over.push(result);
        }
        Err(ResolveError {
            asked: self,
            tried: passed_over,
        })
    }
}

/// Why a backend was taken, for users.
fn reason(asked: BackendKind, taken: &ProbeResult, passed_over: &[ProbeResult]) -> String {
    if asked != BackendKind::Auto {
        return format!("{asked} was asked for; {}", taken.why);
    }
    let others = passed_over
        .iter()
        .map(|other| format!("; {}: {}", other.backend, other.why));
    format!(
        "{} is the best that works here{}",
        taken.backend,
        others.collect::<String>()
    )
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BackendKind {
    type Err = UnknownBackend;

    fn from_str(name: &str) -> Result<Self, UnknownBackend> {
        let known = std::iter::once(Self::Auto).chain(Self::CONCRETE);
        known
            .clone()
            .find(|kind| kind.name() == name && kind.is_compiled())
            .ok_or_else(|| UnknownBackend {
                name: name.to_owned(),
                allowed: known.clone().filter(|kind| kind.is_compiled()).collect(),
                not_compiled: known.filter(|kind| !kind.is_compiled()).collect(),
            })
    }
}

/// A name that is no backend of this build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownBackend {
    /// What was asked for.
    pub name: String,
    /// What may be asked for in this build.
    pub allowed: Vec<BackendKind>,
    /// What another build may have: known names whose feature is off.
    pub not_compiled: Vec<BackendKind>,
}

impl fmt::Display for UnknownBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self
            .not_compiled
            .iter()
            .any(|kind| kind.name() == self.name);
        let verdict = if known {
            "is not compiled in"
        } else {
            "is unknown"
        };
        write!(
            f,
            "backend `{}` {verdict}; allowed: {}",
            self.name,
            Names(&self.allowed)
        )?;
        if known {
            write!(f, "; build with the Cargo feature `{}`", self.name)
        } else if self.not_compiled.is_empty() {
            Ok(())
        } else {
            let others = Names(&self.not_compiled);
            write!(f, "; with their Cargo features also: {others}")
        }
    }
}

impl std::error::Error for UnknownBackend {}

struct Names<'a>(&'a [BackendKind]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (i, kind) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            f.write_str(kind.name())?;
        }
        Ok(())
    }
}

/// A backend that works, and why it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Never [`BackendKind::Auto`].
    pub kind: BackendKind,
    /// One sentence for a log or a user.
    pub why: String,
}

/// No backend that was allowed works here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolveError {
    /// What was asked for.
    pub asked: BackendKind,
    /// What was tried, and why it does not work.
    pub tried: Vec<ProbeResult>,
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backend `{}` does not work here", self.asked)?;
        for result in &self.tried {
            write!(f, "; {}: {}", result.backend, result.why)?;
        }
        Ok(())
    }
}

impl std::error::Error for ResolveError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_when_compiled_and_are_explained_otherwise() {
        for kind in [BackendKind::Auto].into_iter().chain(BackendKind::CONCRETE) {
            match kind.name().parse::<BackendKind>() {
                Ok(parsed) => {
                    assert!(kind.is_compiled());
                    assert_eq!(parsed, kind);
                }
                Err(e) => {
                    assert!(!kind.is_compiled());
                    assert!(e.not_compiled.contains(&kind));
                    assert!(e.to_string().contains("is not compiled in"), "{e}");
                }
            }
        }
        let e = "Tokio"
            .parse::<BackendKind>()
            .expect_err("names are lower case");
        assert!(e.to_string().contains("`Tokio` is unknown"), "{e}");
    }

    #[test]
    #[cfg(feature = "tokio")]
    fn auto_finds_something_and_says_why() {
        let resolved = BackendKind::Auto.resolve().expect("tokio works everywhere");
        assert_ne!(resolved.kind, BackendKind::Auto);
        assert!(
            resolved.why.starts_with(resolved.kind.name()),
            "{}",
            resolved.why
        );
        assert_eq!(
            BackendKind::Tokio.resolve().expect("works").kind,
            BackendKind::Tokio
        );
    }

    #[test]
    fn what_is_not_compiled_does_not_resolve() {
        for kind in BackendKind::CONCRETE
            .into_iter()
            .filter(|kind| !kind.is_compiled())
        {
            let e = kind.resolve().expect_err("its code is not here");
            assert!(e.to_string().contains("not compiled in"), "{e}");
        }
    }
}
