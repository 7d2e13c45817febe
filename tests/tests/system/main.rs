//! System tests: one binary, one file a story. Each test has a world of its own.

mod smoke;
