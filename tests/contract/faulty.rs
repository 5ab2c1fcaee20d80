//! A layer that runs a hook before every operation: the hook may panic.

use std::path::Path;
use std::sync::Arc;

use alluvium::backends::layer::{Layer, Layered};
use async_trait::async_trait;

type Saw = dyn Fn(&'static str, &Path) + Send + Sync;

#[derive(Clone)]
pub(crate) struct Hook(Arc<Saw>);

#[async_trait(?Send)]
impl Layer for Hook {
    fn before(&self, operation: &'static str, path: &Path) {
        (self.0)(operation, path);
    }
}

/// `hook` sees the name of an operation and the path that it works on.
pub(crate) fn hooked<F>(
    factory: F,
    hook: impl Fn(&'static str, &Path) + Send + Sync + 'static,
) -> Layered<F, Hook> {
    Layered::new(factory, Hook(Arc::new(hook)))
}
