// Package image keeps what sandboxes start from on this host: kernels, base images, warm
// memory and the initramfs.
//
// # Terms
//
// A template is a kernel with its modules and one root file system in two forms, found by
// name: a disk (ext4), which a VM's kernel mounts, and a tree (EROFS), which a runtime without
// a guest kernel reads. Both are made from the same directory at the same time, and one digest
// covers both. A blob is a directory of immutable files, named by the hash of what they hold.
// Warm memory is the state of a guest that has booted from a template, kept so that sandboxes
// restore instead of booting; it is good for one WarmKey only.
//
// # On disk
//
//	blobs/<sha256>/…           kernel and modules, a disk, a tree, or a kernel uncompressed
//	templates/<name>.json      the template that has the name now
//	manifests/<digest>.json    every template that ever had one, for sandboxes made earlier
//	warm/<key id>/…            memory, device state, disk layer, warm.json
//	initrd/<sha256>.cpio       the part of an initramfs that does not vary by VM
//	stage/<random>/            being made; its owner holds a lock on stage/<random>.lock
//
// The store belongs to root (0700): warm memory holds a VM's secrets. A VMM gets files by
// descriptor.
//
// # States of a template or warm memory
//
//	staged → published (manifest renamed into place) → replaced by name, still there by digest
//
// # Failure rules
//
// Nothing published is ever edited, and nothing here mounts it. Before the rename every failure undoes: no stage, blob,
// process or mount stays. A process that dies leaves a stage without a lock holder, and
// perhaps a blob that no manifest names; Open removes both. After the rename Open only
// completes. A template of an earlier Roost may lack a form: sandboxes made from it keep it by
// digest, and Ensure builds its successor; its kernel is uncompressed for the first who asks, which
// changes its manifest by the name of that file and nothing else. The build runs in a process and mount namespace of its own, so that one signal
// ends all of it and no mount of it is ever seen by the host.
//
// # Example
//
//	store, err := image.Open("/var/lib/roost/images", log)
//	recipe, err := images.Recipe("base")
//	t, err := store.Ensure(ctx, recipe, image.BuildOptions{CacheDir: "/var/cache/roost"})
//	err = store.Initrd(t, "/usr/lib/roost/roost-guest", boot, dir+"/initrd")
package image
