package boot

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// attributesName is a file that the host puts into a template's tree (internal/host/image): gVisor
// reads no extended attributes from an image, so they are set here, once, and the file is removed.
const attributesName = ".roost-attributes"

// attribute is one line of it.
type attribute struct {
	Path  []byte `json:"path"`
	Name  string `json:"name"`
	Value []byte `json:"value"`
}

// obtainable says whether a program with such capabilities can be started here. One that demands
// what nobody has (CAP_NET_RAW in gVisor) is refused as a whole; without it, it may well do.
func obtainable(value []byte) bool {
	const effective, words = 1, 20 // struct vfs_cap_data: magic, and permitted and inheritable twice
	if len(value) < words || value[0]&effective == 0 {
		return true
	}
	permitted := uint64(binary.LittleEndian.Uint32(value[4:])) | uint64(binary.LittleEndian.Uint32(value[12:]))<<32
	for c := range 64 {
		if permitted&(1<<c) == 0 {
			continue
		}
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0); err != nil || has == 0 {
			return false
		}
	}
	return true
}

// attributes sets what the list says. What cannot be set keeps nobody from starting.
func attributes(root string) error {
	path := filepath.Join(root, attributesName)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.Wrap(err, "set", "attributes of files")
	}
	defer func() { _ = f.Close() }()
	var errs []error
	for lines := json.NewDecoder(f); ; {
		var a attribute
		err := lines.Decode(&a)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			errs = append(errs, err)
			break
		}
		if a.Name == "security.capability" && !obtainable(a.Value) {
			continue
		}
		if err := unix.Lsetxattr(filepath.Join(root, string(a.Path)), a.Name, a.Value, 0); err != nil && len(errs) < 10 {
			errs = append(errs, fault.Wrap(err, "set "+a.Name+" of", string(a.Path)))
		}
	}
	return fault.Wrap(errors.Join(append(errs, os.Remove(path))...), "set", "attributes of files")
}
