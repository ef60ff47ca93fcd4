package cow

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"os"
	"slices"

	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// Exception is one chunk of a disk that a file has: its number on the disk and in the file.
type Exception struct{ Disk, File int64 }

// Image is a copy-on-write file and all that it has, by the chunk of the disk.
type Image struct {
	file *os.File
	list []Exception
}

// Open reads what a file has of a disk of diskBytes. The file stays the caller's, open.
func Open(f *os.File, diskBytes int64) (*Image, error) {
	if err := Check(f); err != nil {
		return nil, err
	}
	r := reader{file: f, disk: chunks(diskBytes)}
	st, err := f.Stat()
	if err != nil {
		return nil, layerfile.Failed(err, "open", f.Name())
	}
	r.chunks = chunks(st.Size())
	if err := r.readAll(); err != nil {
		return nil, err
	}
	img := &Image{file: f, list: r.list}
	return img, img.order()
}

// Len is how many chunks the file has.
func (img *Image) Len() int { return len(img.list) }

// Find tells where in the file a chunk of the disk is.
func (img *Image) Find(chunk int64) (file int64, found bool) {
	i, found := slices.BinarySearchFunc(img.list, chunk, func(e Exception, n int64) int { return cmp.Compare(e.Disk, n) })
	if !found {
		return 0, false
	}
	return img.list[i].File, true
}

// End is where the used part of the file ends, in bytes: behind the last data chunk, and behind
// the area that the kernel would read next.
func (img *Image) End() int64 {
	end := areaAt(int64(len(img.list)/perArea)) + 1
	for _, e := range img.list {
		end = max(end, e.File+1)
	}
	return end * ChunkSize
}

// order sorts by the disk's chunks, and refuses two claims on one chunk of either side.
func (img *Image) order() error {
	if !slices.IsSortedFunc(img.list, byFile) {
		slices.SortFunc(img.list, byFile)
	}
	for i := 1; i < len(img.list); i++ {
		if img.list[i].File == img.list[i-1].File {
			return damaged(img.file, fmt.Sprintf("its chunk %d is listed twice", img.list[i].File))
		}
	}
	slices.SortFunc(img.list, byDisk)
	for i := 1; i < len(img.list); i++ {
		if img.list[i].Disk == img.list[i-1].Disk {
			return damaged(img.file, fmt.Sprintf("it has the disk's chunk %d twice", img.list[i].Disk))
		}
	}
	return nil
}

func byFile(a, b Exception) int { return cmp.Compare(a.File, b.File) }
func byDisk(a, b Exception) int { return cmp.Compare(a.Disk, b.Disk) }

// reader reads metadata areas one after another.
type reader struct {
	file   *os.File
	chunks int64 // of the file
	disk   int64 // chunks of the disk
	list   []Exception
}

func (r *reader) readAll() error {
	area := make([]byte, ChunkSize)
	for n := int64(0); ; n++ {
		if areaAt(n) >= r.chunks {
			return damaged(r.file, fmt.Sprintf("it ends before its metadata area %d", n))
		}
		if err := layerfile.ReadPadded(r.file, area, areaAt(n)*ChunkSize); err != nil {
			return layerfile.Failed(err, "read metadata of", r.file.Name())
		}
		full, err := r.add(area)
		if err != nil || !full {
			return err
		}
	}
}

// add takes the exceptions of one area and tells whether the area is full.
func (r *reader) add(area []byte) (full bool, err error) {
	for len(area) > 0 {
		old, fresh := binary.LittleEndian.Uint64(area), binary.LittleEndian.Uint64(area[8:])
		if fresh == 0 {
			return false, nil
		}
		if old >= uint64(r.disk) {
			return false, damaged(r.file, fmt.Sprintf("it has chunk %d of a disk of %d", old, r.disk))
		}
		if fresh >= uint64(r.chunks) || isMetadata(int64(fresh)) {
			return false, damaged(r.file, fmt.Sprintf("it lists its own chunk %d of %d as data", fresh, r.chunks))
		}
		if int64(len(r.list)) >= r.disk {
			return false, damaged(r.file, fmt.Sprintf("it has more chunks than the disk's %d", r.disk))
		}
		r.list = append(r.list, Exception{Disk: int64(old), File: int64(fresh)})
		area = area[entrySize:]
	}
	return true, nil
}
