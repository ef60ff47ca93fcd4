package devicemapper

import (
	"os"

	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/cow"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// stackFiles are a stack's files as they were when they were checked.
type stackFiles struct {
	base   os.FileInfo
	layers []os.FileInfo
}

func (s stackFiles) all() []os.FileInfo { return append([]os.FileInfo{s.base}, s.layers...) }

// checkStack checks a stack's sizes and files.
func checkStack(stack disk.Stack) (stackFiles, error) {
	if err := stack.Check(); err != nil {
		return stackFiles{}, err
	}
	base, err := layerfile.CheckBase(stack.Base)
	if err != nil {
		return stackFiles{}, err
	}
	files := stackFiles{base: base}
	for _, l := range stack.Layers {
		info, err := checkFile(l.Path)
		if err != nil {
			return stackFiles{}, err
		}
		files.layers = append(files.layers, info)
	}
	return files, nil
}

// checkFile refuses what is not a valid copy-on-write file.
func checkFile(path string) (os.FileInfo, error) {
	f, err := layerfile.Open(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	if err := cow.Check(f); err != nil {
		return nil, err
	}
	info, err := f.Stat()
	return info, layerfile.Failed(err, "open", path)
}
