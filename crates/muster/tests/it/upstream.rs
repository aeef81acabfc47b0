//! Real upstream manifests of size go the whole way: CRDs of over 500 KB, hundreds of objects in one
//! file, List kinds.
