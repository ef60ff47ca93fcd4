package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"os"

	"github.com/roosthq/roost/internal/fault"
)

// makeTree writes an EROFS image with the content of root, and no mount. Equal content gives
// equal bytes: times after the form's epoch become the epoch (mkfs.erofs reads SOURCE_DATE_EPOCH),
// earlier ones stay.
//
// gVisor maps files straight from the image, so their data must not lie inside inodes
// (noinline_data: with it, reads fail with EFAULT) and is not compressed. It knows no extended
// attributes of EROFS and refuses a file that has some, so the tree has none (-x-1); see
// attributes.go for those of templates that are made.
func makeTree(ctx context.Context, r rootForm, root, tree string) error {
	tool := command{
		env: []string{"SOURCE_DATE_EPOCH=" + r.epoch}, packageName: "erofs-utils",
	}
	err := tool.run(ctx, "mkfs.erofs", "--quiet", "-x-1", "-Enoinline_data,force-inode-extended",
		"-U"+uuidOf("tree of "+r.name), tree, root)
	if err != nil {
		return fault.Wrap(err, "make tree of template", r.name)
	}
	return fault.Wrap(checkTree(tree), "check tree of template", r.name)
}

// The superblock, as the kernel's fs/erofs/erofs_fs.h has it.
const (
	erofsSuperAt   = 1024
	erofsMagic     = 0xe0f5e1e2
	erofsBlockBits = 12 // offset 12 of the superblock
	erofsChecksum  = 1  // feature bit
)

// checkTree holds the image against its superblock: magic, checksum, block size, and that the
// file is as long as the superblock says.
func checkTree(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fail(err, "read", path)
	}
	defer func() { _ = f.Close() }() // read only
	block := make([]byte, blockBytes)
	if _, err := f.ReadAt(block, 0); err != nil {
		return fail(err, "read superblock of", path)
	}
	st, err := f.Stat()
	if err != nil {
		return fail(err, "read", path)
	}
	if wrong := superblockFault(block, st.Size()); wrong != "" {
		return fault.New(fault.Internal, "check superblock of", path, wrong)
	}
	return nil
}

// superblockFault says what is wrong with an image of that first block and size, "" if nothing.
func superblockFault(block []byte, size int64) string {
	super := block[erofsSuperAt:]
	word := func(at int) uint32 { return binary.LittleEndian.Uint32(super[at:]) }
	switch {
	case word(0) != erofsMagic:
		return "no EROFS image"
	case super[12] != erofsBlockBits:
		return "its blocks are not of 4096 bytes"
	case word(8)&erofsChecksum != 0 && word(4) != superblockChecksum(super):
		return "its checksum is wrong"
	case int64(word(36))*blockBytes != size:
		return "its size is not what it says"
	}
	return ""
}

// superblockChecksum is CRC-32C of the rest of the block with the checksum's own field zero,
// from all ones and, unlike the usual form, not inverted at the end.
func superblockChecksum(super []byte) uint32 {
	copied := bytes.Clone(super)
	clear(copied[4:8])
	return ^crc32.Checksum(copied, crc32.MakeTable(crc32.Castagnoli))
}
