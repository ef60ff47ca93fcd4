// Package layerfile is what the files of every disk driver have in common: opening one that a
// VM could have replaced, its checksum, sealing it, publishing a new one, and copying data while
// holes stay holes.
//
// A file that comes from a VM is opened without following links and must be a regular one. A
// new file has no name until it is whole and synced: neither cancellation nor the death of the
// agent leaves anything behind. Errors name operation and file; a full file system is
// fault.ResourceExhausted, damage to a layer fault.DataLoss, a file that is not what it should
// be fault.FailedPrecondition.
package layerfile
