// Package cow reads and writes copy-on-write files as the kernel's dm-snapshot keeps them
// (its persistent exception store, version 1), without a device: merging and flattening layers
// are plain file work.
//
// # Format
//
// A file is a row of chunks of 4 KiB. Chunk 0 is the header. Chunk 1 is the first metadata
// area, and there is one more after every 256 chunks of data. An area lists 256 exceptions,
// each a pair (chunk of the disk, chunk of this file that holds its content); the first pair
// whose second number is 0 ends the list. Numbers are little-endian.
//
// The kernel allots data chunks in a row, so what is used of a file is its beginning: End is
// where that ends. A live disk's file is sparse and as large as the disk could ever need
// (SizeFor); a layer's file is cut off at its End, since a checksum covers holes too.
//
// # Failure rules
//
// The kernel marks a snapshot invalid when it could not write to the file, as on a full file
// system; what the guest wrote since is lost, and the file is refused for good. That, and
// everything the kernel would not have written, is fault.DataLoss. Numbers in a file lead only
// to chunks of the same file. Nothing here is locked: who calls knows that no device writes to
// the file.
package cow
