//! The engine of Alluvium.

pub mod io;
