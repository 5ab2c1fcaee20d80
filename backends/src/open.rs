//! Opening a store on a backend that is chosen by name, at run time.
#![cfg_attr(
    not(any(
        feature = "tokio",
        feature = "compio",
        feature = "uring",
        feature = "glommio"
    )),
    expect(
        dead_code,
        clippy::unused_async,
        reason = "no name stands for a factory"
    )
)]

use std::future::Future;

use alluvium_core::io::BackendFactory;
use alluvium_core::{Error, OpenRequest, OpenStore, RecoveryReport, Result, Store};

use crate::BackendKind;

impl OpenStore for BackendKind {
    /// Resolves the name (`auto` probes the machine) and opens the store on the result.
    ///
    /// # Errors
    /// [`Error::BackendUnavailable`] when it does not work here, with the reason; otherwise those
    /// of [`alluvium_core::ConfiguredBuilder::open`].
    async fn open(self, request: OpenRequest) -> Result<(Store, RecoveryReport)> {
        on(self, Itself, request).await
    }
}

/// What opens a store on the factory that a name stands for.
pub(crate) trait OpenOn: Send {
    fn open<F: BackendFactory>(
        self,
        factory: F,
        request: OpenRequest,
    ) -> impl Future<Output = Result<(Store, RecoveryReport)>> + Send;
}

/// Opens it on the factory itself.
struct Itself;

impl OpenOn for Itself {
    async fn open<F: BackendFactory>(
        self,
        factory: F,
        request: OpenRequest,
    ) -> Result<(Store, RecoveryReport)> {
        factory.open(request).await
    }
}

/// Finds the factory that `kind` stands for on this machine.
pub(crate) async fn on(
    kind: BackendKind,
    opening: impl OpenOn,
    request: OpenRequest,
) -> Result<(Store, RecoveryReport)> {
    let resolved = kind.resolve().map_err(|e| Error::BackendUnavailable {
        name: kind.name().to_owned(),
        why: e.to_string(),
    })?;
    let request = request.because(resolved.why);
    match resolved.kind {
        #[cfg(feature = "tokio")]
        BackendKind::Tokio => {
            let factory = crate::tokio::TokioFactory::new();
            opening.open(factory, request).await
        }
        #[cfg(feature = "compio")]
        BackendKind::Compio => {
            let factory = crate::compio::CompioFactory::new();
            opening.open(factory, request).await
        }
        #[cfg(feature = "uring")]
        BackendKind::Uring => {
            let factory = crate::uring::UringFactory::new();
            opening.open(factory, request).await
        }
        #[cfg(feature = "glommio")]
        BackendKind::Glommio => {
            let factory = crate::glommio::GlommioFactory::new();
            opening.open(factory, request).await
        }
        // A resolved kind is compiled in and is never `Auto`.
        other => {
            drop((opening, request));
            Err(Error::BackendUnavailable {
                name: other.name().to_owned(),
                why: "it is not compiled in".to_owned(),
            })
        }
    }
}
