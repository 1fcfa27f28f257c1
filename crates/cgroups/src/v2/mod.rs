//! The controllers of version 2, a file each: limits in, numbers out. pids, rdma and most of
//! hugetlb are those of version 1.

pub(crate) mod controllers;
pub(crate) mod cpu;
pub(crate) mod cpuset;
pub(crate) mod devices;
pub(crate) mod freezer;
pub(crate) mod hugetlb;
pub(crate) mod io;
pub(crate) mod limits;
pub(crate) mod memory;
pub(crate) mod pressure;
pub(crate) mod stats;
