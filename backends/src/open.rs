//! Opening a store on a backend that is chosen by name, at run time.

use alluvium_core::{Error, OpenRequest, OpenStore, RecoveryReport, Result, Store};

use crate::BackendKind;

impl OpenStore for BackendKind {
    /// Resolves the name (`auto` probes the machine) and opens the store on the result.
    ///
    /// # Errors
    /// [`Error::BackendUnavailable`] when it does not work here, with the reason; otherwise those
    /// of [`alluvium_core::ConfiguredBuilder::open`].
    async fn open(self, request: OpenRequest) -> Result<(Store, RecoveryReport)> {
        let resolved = self.resolve().map_err(|e| Error::BackendUnavailable {
            name: self.name().to_owned(),
            why: e.to_string(),
        })?;
        let request = request.because(resolved.why);
        match resolved.kind {
            #[cfg(feature = "tokio")]
            Self::Tokio => crate::tokio::TokioFactory::new().open(request).await,
            #[cfg(feature = "compio")]
            Self::Compio => crate::compio::CompioFactory::new().open(request).await,
            #[cfg(feature = "uring")]
            Self::Uring => crate::uring::UringFactory::new().open(request).await,
            #[cfg(feature = "glommio")]
            Self::Glommio => crate::glommio::GlommioFactory::new().open(request).await,
            // A resolved kind is compiled in and is never `Auto`.
            other => {
                drop(request);
                Err(Error::BackendUnavailable {
                    name: other.name().to_owned(),
                    why: "it is not compiled in".to_owned(),
                })
            }
        }
    }
}
