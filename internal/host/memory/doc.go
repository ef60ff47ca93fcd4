// Package memory keeps the RAM of virtual machines: what a template's VMs share, and what
// one sandbox changed.
//
// # Terms
//
// A template's memory is the RAM of a VM that has booted. While it boots it is an unsealed
// memfd that the VM maps shared (NewTemplate); when that VM is dead it is sealed (Seal) and
// from then on no one, root included, can change it. It rests on disk as a sparse file with a
// checksum per 2 MiB (Save, Load). A Cache holds one sealed memfd per template for all
// sandboxes of a host.
//
// A sandbox maps that memfd MAP_PRIVATE: pages that it writes are its own (private), the rest
// are the template's. What is saved of it is a Map and the layers that the Map refers to. A
// Map says of each page one of three things:
//
//	unchanged   the template's page
//	zero        all bytes are zero (which is not the same as unchanged)
//	data        page I of layer L, with a 128-bit hash
//
// A layer is a file of pages, one after another, without a header; it is written once and
// never edited. It is known by an id made of its content, after which its file is called, so
// that it may lie anywhere and be shared by hard links. Layers are numbered from 0, oldest first.
//
// # Life
//
//	NewTemplate → (VM boots, stops, dies) → Seal → Save … Load → Cache → private mappings
//	Capture(no parent) → map 1, layer 0 → Apply → (VM runs) → Capture(map 1) → map 2, layer 1 …
//	… at MaxLayers: Merge → one layer, or Capture(no parent): all private pages once more
//
// and where the VMM makes its memory:
//
//	(VM boots, its dirty pages) → SaveFrom → Verify → mapped by the VMM's own
//	CaptureDirty(no parent) → map 1, layer 0 → Source → (VM runs) → CaptureDirty(map 1) → …
//	… at MaxLayers: Merge before the next restore
//
// # Failure rules
//
// Capture and Usage only read the other process. Apply writes it, so a VM that Apply failed on
// must be ended. Files are published by rename after they are synced; a reader sees an old
// file, a new file or none. Temporary files are named .NAME.*.tmp beside their target; one
// that a crash left is nobody's and may be deleted. Whatever is read from disk is checked
// before it is used: a map by its checksum and its structure, a layer page by page and, with the
// pages that no longer matter, by its id, a template chunk by chunk. Damage, and a file that is
// missing among a map's layers, is fault.DataLoss. The hash (XXH3) finds damage, not forgery: the files must be
// writable by root only. A guest that makes two pages of its own collide harms itself alone.
//
// # Example
//
//	f, err := memory.NewTemplate("base", 512<<20)       // give f to the VM that boots
//	err = memory.Seal(f)                                // that VM is dead
//	info, err := memory.Save(ctx, f, "/t/base.mem")
//	t, err := cache.Get(ctx, "/t/base.mem", 512<<20)    // t.File for the sandbox's VMM
//	mp, stats, err := memory.CaptureFile(ctx, m, nil, "/s/x", true)   // makes /s/x/mem-ID.layer
//	err = memory.WriteMap("/s/x/map-1", mp)
//	mp, err = memory.ReadMap("/s/x/map-1")              // later, in another process:
//	layers, err := memory.OpenLayers(mp, []string{"/s/x/" + mp.LayerName(0)})
//	_, err = memory.Apply(ctx, m2, mp, layers.Readers())
package memory

// PageSize is the unit of everything here, in bytes.
const PageSize = 4096

// batchPages is how many pages are moved at once: 1 MiB fits a core's cache and makes the
// cost of a system call vanish.
const batchPages = 256
