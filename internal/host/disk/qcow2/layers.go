package qcow2

import (
	"os"

	"github.com/roosthq/roost/internal/host/disk"
)

// layers are the open images of adjacent layers, bottom first, with the tables of one stretch
// of the disk (bytesPerL2 long) at a time.
type layers struct {
	images []*image
	l1     [][]uint64
	l2     [][]uint64
}

// openLayers opens sealed layers. One that a VM still writes to is refused.
func openLayers(list []disk.Layer, op string) (*layers, error) {
	ls := &layers{l2: make([][]uint64, len(list))}
	for _, l := range list {
		if err := ls.add(l, op); err != nil {
			ls.close()
			return nil, err
		}
	}
	return ls, nil
}

func (ls *layers) add(l disk.Layer, op string) error {
	img, err := openImage(l.Path, l.SizeBytes, os.O_RDONLY)
	if err != nil {
		return err
	}
	ls.images = append(ls.images, img)
	if err := img.checkUnused(op); err != nil {
		return err
	}
	l1, err := img.l1()
	ls.l1 = append(ls.l1, l1)
	return err
}

func (ls *layers) close() {
	for _, img := range ls.images {
		img.close()
	}
}

// load reads the tables of stretch n.
func (ls *layers) load(n int64) error {
	for i, img := range ls.images {
		ls.l2[i] = nil
		if n >= l1Entries(img.size) {
			continue
		}
		table, err := img.l2(ls.l1[i][n])
		if err != nil {
			return err
		}
		ls.l2[i] = table
	}
	return nil
}

// empty says that no layer has anything in the loaded stretch.
func (ls *layers) empty() bool {
	for _, table := range ls.l2 {
		if table != nil {
			return false
		}
	}
	return true
}

// find returns the place of cluster i of the loaded stretch in the topmost layer that has it.
func (ls *layers) find(i int64) (place, error) {
	for n := len(ls.images) - 1; n >= 0; n-- {
		if ls.l2[n] == nil || ls.l2[n][i] == 0 {
			continue
		}
		p, err := ls.images[n].place(ls.l2[n][i])
		if err != nil || p.set {
			return p, err
		}
	}
	return place{}, nil
}

// clustersIn is how many clusters of stretch n a disk of size has.
func clustersIn(n, size int64) int64 {
	return min(bytesPerL2, size-n*bytesPerL2) / clusterSize
}
