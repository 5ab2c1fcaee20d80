//! The engine of Alluvium.

pub mod format;
pub mod io;
