package cow

import (
	"context"
	"os"

	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// Below is what merged layers stand on.
type Below struct {
	Base      *os.File
	BaseBytes int64
	Layers    []*Image
}

// mayHaveData tells whether a chunk could read as anything but zeros.
func (b Below) mayHaveData(chunk int64) (bool, error) {
	for _, l := range b.Layers {
		if _, found := l.Find(chunk); found {
			return true, nil
		}
	}
	from := chunk * ChunkSize
	to := min(from+ChunkSize, b.BaseBytes)
	if from >= to {
		return false, nil
	}
	data, _, err := layerfile.NextData(b.Base, from, to)
	return data < to, layerfile.Failed(err, "read base image", b.Base.Name())
}

// Merge writes layers, bottom first, as one into the empty file dst: of each chunk the newest.
// Zeros that hide nothing are left out.
func Merge(ctx context.Context, dst *os.File, layers []*Image, below Below) error {
	w := NewWriter(dst)
	err := eachRun(ctx, layers, func(first int64, data []byte) error {
		for ; len(data) > 0; data = data[ChunkSize:] {
			if err := mergeChunk(w, first, data[:ChunkSize], below); err != nil {
				return err
			}
			first++
		}
		return nil
	})
	if err != nil {
		return err
	}
	return w.Finish()
}

func mergeChunk(w *Writer, chunk int64, data []byte, below Below) error {
	if layerfile.IsZero(data) {
		hides, err := below.mayHaveData(chunk)
		if err != nil || !hides {
			return err
		}
	}
	return w.Put(chunk, data)
}

// Flatten writes a base and the layers over it, bottom first, as a sparse raw image of size
// bytes into the empty file dst.
func Flatten(ctx context.Context, dst, base *os.File, baseBytes int64, layers []*Image, size int64) error {
	if err := dst.Truncate(size); err != nil {
		return err
	}
	fromBase := int64(0)
	copyBase := func(to int64) error {
		err := layerfile.Copy(ctx, dst, base, min(fromBase, baseBytes), min(to, baseBytes))
		return layerfile.Failed(err, "copy base image", base.Name())
	}
	err := eachRun(ctx, layers, func(first int64, data []byte) error {
		at := first * ChunkSize
		if err := copyBase(at); err != nil {
			return err
		}
		fromBase = at + int64(len(data))
		return layerfile.WriteSparse(dst, data, at)
	})
	if err != nil {
		return err
	}
	return copyBase(baseBytes)
}

// place is where the newest content of one chunk of the disk is.
type place struct {
	Exception
	image *Image
}

// newest lists the chunks of all layers, bottom first, by the disk's order.
func newest(layers []*Image) []place {
	var all []place
	for _, l := range layers {
		all = over(all, l)
	}
	return all
}

// over puts a layer's chunks over a list.
func over(list []place, top *Image) []place {
	out := make([]place, 0, len(list)+len(top.list))
	for _, e := range top.list {
		for len(list) > 0 && list[0].Disk < e.Disk {
			out, list = append(out, list[0]), list[1:]
		}
		if len(list) > 0 && list[0].Disk == e.Disk {
			list = list[1:]
		}
		out = append(out, place{e, top})
	}
	return append(out, list...)
}

// follows tells whether b comes right after a, on the disk and in one file.
func (a place) follows(b place) bool {
	return a.image == b.image && a.Disk == b.Disk+1 && a.File == b.File+1
}

// eachRun reads the newest content of all chunks in the disk's order, what lies in a row at once.
func eachRun(ctx context.Context, layers []*Image, do func(first int64, data []byte) error) error {
	list, buf := newest(layers), make([]byte, longestRun*ChunkSize)
	for len(list) > 0 {
		n := 1
		for n < len(list) && n < longestRun && list[n].follows(list[n-1]) {
			n++
		}
		data, from := buf[:n*ChunkSize], list[0]
		if err := layerfile.ReadPadded(from.image.file, data, from.File*ChunkSize); err != nil {
			return layerfile.Failed(err, "read", from.image.file.Name())
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := do(from.Disk, data); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

const longestRun = 64
