package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// holed is a file with holes that was taken out of a root: where its content lies, what it is called
// in the root, and an empty file that stands there for it.
type holed struct {
	content string
	size    int64
	names   []string
	standIn string
}

// makeSparseTree is makeTree for a root with sparse files, which mkfs.erofs would write out, zeros
// and all. It gets empty ones in their place; their content follows behind the image that it made,
// holes left out, and the inodes are told so. It also gets the list of attributes. The root is of no use for anything else afterwards.
func makeSparseTree(ctx context.Context, f rootForm, root, aside, tree string) error {
	if err := writeAttributes(ctx, root); err != nil {
		return fail(err, "list attributes of", root)
	}
	files, err := takeOutHoles(ctx, root, aside)
	if err != nil {
		return fail(err, "take out sparse files of", root)
	}
	if err := makeTree(ctx, f, root, tree); err != nil || len(files) == 0 {
		return err
	}
	if err := appendHoles(ctx, tree, files); err != nil {
		return fail(err, "append sparse files to", tree)
	}
	return fault.Wrap(checkTree(tree), "check tree of template", f.name)
}

// takeOutHoles puts an empty file of the same owner, mode and time where a file with holes is.
// Directories keep their times.
func takeOutHoles(ctx context.Context, root, aside string) ([]*holed, error) {
	files, err := findHoles(ctx, root)
	if err != nil {
		return nil, err
	}
	for i, h := range files {
		h.content = filepath.Join(aside, strconv.Itoa(i))
		h.standIn = h.content + ".empty"
		if err := h.takeOut(root); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// findHoles lists sparse files in the order of their first names.
func findHoles(ctx context.Context, root string) ([]*holed, error) {
	var files []*holed
	known := map[inode]*holed{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil || !hasHoles(info) {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		name, err := filepath.Rel(root, path)
		if err != nil || !ok {
			return err
		}
		id := inode{st.Dev, st.Ino}
		if known[id] == nil {
			known[id] = &holed{size: info.Size()}
			files = append(files, known[id])
		}
		known[id].names = append(known[id].names, name)
		return nil
	})
	return files, err
}

func (h *holed) takeOut(root string) error {
	first := filepath.Join(root, h.names[0])
	if err := os.Link(first, h.content); err != nil {
		return err
	}
	if err := h.makeStandIn(first); err != nil {
		return err
	}
	for _, name := range h.names {
		path := filepath.Join(root, name)
		err := keepingTime(filepath.Dir(path), func() error {
			return errors.Join(os.Remove(path), os.Link(h.standIn, path))
		})
		if err != nil {
			return err
		}
	}
	return os.Remove(h.standIn) // not to be counted as one of its names
}

func (h *holed) makeStandIn(like string) error {
	var st unix.Stat_t
	if err := unix.Lstat(like, &st); err != nil {
		return err
	}
	if err := os.WriteFile(h.standIn, nil, 0o600); err != nil {
		return err
	}
	return errors.Join(os.Chown(h.standIn, int(st.Uid), int(st.Gid)), unix.Chmod(h.standIn, st.Mode&0o7777),
		unix.UtimesNanoAt(unix.AT_FDCWD, h.standIn, []unix.Timespec{st.Atim, st.Mtim}, 0))
}

func keepingTime(dir string, f func() error) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	return errors.Join(f(), unix.UtimesNanoAt(unix.AT_FDCWD, dir, []unix.Timespec{st.Atim, st.Mtim}, 0))
}

// appendHoles writes files behind an image and makes their inodes say so.
func appendHoles(ctx context.Context, tree string, files []*holed) (err error) {
	f, err := os.OpenFile(tree, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	img, err := openErofs(f)
	if err != nil {
		return err
	}
	for _, h := range files {
		if err := img.append(ctx, h); err != nil {
			return fmt.Errorf("%q: %w", h.names[0], err)
		}
	}
	return img.finish()
}

// erofs is an image being changed. Fields are those of the kernel's fs/erofs/erofs_fs.h.
type erofs struct {
	f *os.File
	// super is the first block; blocks is where the image ends.
	super  []byte
	blocks int64
}

const (
	superRootNid  = erofsSuperAt + 14
	superBlocks   = erofsSuperAt + 36
	superMetaAt   = erofsSuperAt + 40
	inodeSlot     = 32
	extendedBytes = 64
	// Of an inode's format: the lowest bit is the large form, the next three are the layout.
	formatExtended = 1
	layoutMask     = 7 << 1
	layoutPlain    = 0 << 1
	layoutInline   = 2 << 1
	direntBytes    = 12
)

func openErofs(f *os.File) (*erofs, error) {
	e := &erofs{f: f, super: make([]byte, blockBytes)}
	if _, err := f.ReadAt(e.super, 0); err != nil {
		return nil, err
	}
	e.blocks = int64(binary.LittleEndian.Uint32(e.super[superBlocks:]))
	return e, nil
}

// erofsInode is an inode of the large form, the only one in our images.
type erofsInode struct {
	at  int64 // in the image
	raw []byte
}

func (e *erofs) inode(nid uint64) (erofsInode, error) {
	meta := int64(binary.LittleEndian.Uint32(e.super[superMetaAt:]))
	i := erofsInode{at: meta*blockBytes + int64(nid)*inodeSlot, raw: make([]byte, extendedBytes)} //nolint:gosec // an image that we made
	if _, err := e.f.ReadAt(i.raw, i.at); err != nil {
		return i, err
	}
	if i.format()&formatExtended == 0 || i.word16(2) != 0 {
		return i, errors.New("an inode of another form")
	}
	return i, nil
}

func (i erofsInode) word16(at int) uint16 { return binary.LittleEndian.Uint16(i.raw[at:]) }
func (i erofsInode) format() uint16       { return i.word16(0) }
func (i erofsInode) mode() uint16         { return i.word16(4) }
func (i erofsInode) size() int64          { return int64(binary.LittleEndian.Uint64(i.raw[8:])) } //nolint:gosec // as above
func (i erofsInode) block() int64         { return int64(binary.LittleEndian.Uint32(i.raw[16:])) }

// find follows a path from the root.
func (e *erofs) find(path string) (erofsInode, error) {
	at, err := e.inode(uint64(binary.LittleEndian.Uint16(e.super[superRootNid:])))
	if err != nil {
		return at, err
	}
	for name := range strings.SplitSeq(path, "/") {
		nid, err := e.lookUp(at, name)
		if err == nil {
			at, err = e.inode(nid)
		}
		if err != nil {
			return at, err
		}
	}
	return at, nil
}

func (e *erofs) lookUp(dir erofsInode, name string) (uint64, error) {
	for at := int64(0); at < dir.size(); at += blockBytes {
		block := make([]byte, min(blockBytes, dir.size()-at))
		if _, err := e.f.ReadAt(block, dir.offset(at, len(block))); err != nil {
			return 0, err
		}
		if nid, ok := inDirents(block, name); ok {
			return nid, nil
		}
	}
	return 0, fs.ErrNotExist
}

// offset of a piece of a directory: the last may lie behind the inode.
func (i erofsInode) offset(at int64, length int) int64 {
	if i.format()&layoutMask == layoutInline && length < blockBytes {
		return i.at + extendedBytes
	}
	return i.block()*blockBytes + at
}

// inDirents looks into one block of a directory: entries, and behind them their names.
func inDirents(block []byte, name string) (nid uint64, found bool) {
	if len(block) < direntBytes {
		return 0, false
	}
	nameAt := func(i int) int { return int(binary.LittleEndian.Uint16(block[i*direntBytes+8:])) }
	count := nameAt(0) / direntBytes
	for i := range count {
		end := len(block)
		if i+1 < count {
			end = nameAt(i + 1)
		}
		if nameAt(i) > end || end > len(block) {
			return 0, false
		}
		if string(bytes.TrimRight(block[nameAt(i):end], "\x00")) == name {
			return binary.LittleEndian.Uint64(block[i*direntBytes:]), true
		}
	}
	return 0, false
}

// append writes a file's data behind the image and points its inode there.
func (e *erofs) append(ctx context.Context, h *holed) error {
	i, err := e.find(filepath.ToSlash(h.names[0]))
	if err != nil {
		return err
	}
	if i.mode()&unix.S_IFMT != unix.S_IFREG || i.size() != 0 {
		return errors.New("it is not the empty file in the image that it was")
	}
	parts, err := dataOf(h.content, h.size)
	if err != nil {
		return err
	}
	if err := e.copy(ctx, h.content, parts, e.blocks*blockBytes); err != nil {
		return err
	}
	binary.LittleEndian.PutUint16(i.raw, i.format()&^layoutMask|layoutPlain)
	binary.LittleEndian.PutUint64(i.raw[8:], uint64(h.size))
	binary.LittleEndian.PutUint32(i.raw[16:], uint32(e.blocks))
	e.blocks += (h.size + blockBytes - 1) / blockBytes
	if e.blocks > 1<<32-1 {
		return fault.New(fault.FailedPrecondition, "", "", "files with holes are too large for the image")
	}
	_, err = e.f.WriteAt(i.raw, i.at)
	return err
}

// copy writes the parts of a file, and nothing between them.
func (e *erofs) copy(ctx context.Context, content string, parts []extent, to int64) error {
	from, err := os.Open(content)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }() // read only
	buf := make([]byte, 1<<20)
	for _, p := range parts {
		for p.length > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			piece := buf[:min(p.length, int64(len(buf)))]
			if _, err := io.ReadFull(io.NewSectionReader(from, p.at, p.length), piece); err != nil {
				return err
			}
			if _, err := e.f.WriteAt(piece, to+p.at); err != nil {
				return err
			}
			p.at, p.length = p.at+int64(len(piece)), p.length-int64(len(piece))
		}
	}
	return nil
}

// finish makes the image as long as it says, and its checksum right. Inodes lie in the first block too.
func (e *erofs) finish() error {
	if _, err := e.f.ReadAt(e.super, 0); err != nil {
		return err
	}
	binary.LittleEndian.PutUint32(e.super[superBlocks:], uint32(e.blocks)) //nolint:gosec // checked
	super := e.super[erofsSuperAt:]
	if binary.LittleEndian.Uint32(super[8:])&erofsChecksum != 0 {
		binary.LittleEndian.PutUint32(super[4:], superblockChecksum(super))
	}
	if _, err := e.f.WriteAt(e.super, 0); err != nil {
		return err
	}
	return e.f.Truncate(e.blocks * blockBytes)
}
