package image

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// attributesName is a file in a tree that says which extended attributes its files have, since the
	// tree itself cannot (makeTree). The guest agent (internal/guest/boot) sets them at its first boot
	// and removes it.
	attributesName = ".roost-attributes"
	// maxAttributed: a larger file goes without. Setting an attribute copies a file into the sandbox's
	// own part of the disk, which every checkpoint holds.
	maxAttributed = 16 << 20
)

// attribute is one line of that file. Names and values are bytes, which JSON has as base64.
type attribute struct {
	Path  []byte `json:"path"`
	Name  string `json:"name"`
	Value []byte `json:"value"`
}

// writeAttributes puts the file into root if there is anything to say.
func writeAttributes(ctx context.Context, root string) error {
	list := filepath.Join(root, attributesName)
	return keepingTime(root, func() error {
		if err := os.RemoveAll(list); err != nil { // whatever a guest has put there
			return err
		}
		all, err := attributesOf(ctx, root)
		if err != nil || len(all) == 0 {
			return err
		}
		f, err := os.OpenFile(list, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		out := bufio.NewWriter(f)
		lines := json.NewEncoder(out)
		for _, a := range all {
			if err = lines.Encode(a); err != nil {
				break
			}
		}
		return errors.Join(err, out.Flush(), f.Close())
	})
}

func attributesOf(ctx context.Context, root string) ([]attribute, error) {
	var all []attribute
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil || !e.IsDir() && !e.Type().IsRegular() {
			return err
		}
		names, err := attributeNames(path)
		if err != nil || len(names) == 0 {
			return err
		}
		info, err := e.Info()
		if err != nil || info.Size() > maxAttributed {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		for _, name := range names {
			value := make([]byte, maxAttributes)
			n, err := unix.Lgetxattr(path, name, value)
			if err != nil {
				return &fs.PathError{Op: "read attributes of", Path: path, Err: err}
			}
			all = append(all, attribute{[]byte(rel), name, value[:n]})
		}
		return nil
	})
	return all, err
}

// attributeNames are those that unpacking has set; the host may add others (security.selinux).
func attributeNames(path string) ([]string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "list attributes of", Path: path, Err: err}
	}
	var names []string
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if keptAttribute(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// keptAttribute: what a template may have.
func keptAttribute(name string) bool {
	return strings.HasPrefix(name, "user.") || name == "security.capability"
}
