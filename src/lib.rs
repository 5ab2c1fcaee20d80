#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub use alluvium_backends as backends;
pub use alluvium_backends::{BackendKind, probe};
pub use alluvium_core::*;
