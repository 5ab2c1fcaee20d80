//! The logs that need no other library: Alluvium itself, and the plain way.

mod naive;
mod store;

pub use naive::Naive;
pub use store::Alluvium;
