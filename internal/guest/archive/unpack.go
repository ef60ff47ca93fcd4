package archive

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"strings"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/account"
	"github.com/roosthq/roost/internal/guest/reply"
)

// Put unpacks.
func (h Handler) Put(w http.ResponseWriter, r *http.Request) {
	if err := h.unpack(r); err != nil {
		reply.Error(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (h Handler) unpack(r *http.Request) error {
	user, dir, err := h.resolve(r)
	if err != nil {
		return err
	}
	if err := user.MkdirAll(dir); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return account.FromOS(err, "unpack into", dir)
	}
	defer func() { _ = root.Close() }()
	u := unpacker{root: root, user: user}
	in := tar.NewReader(r.Body)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fault.New(fault.Invalid, "read", "tar stream", err.Error())
		}
		if err := u.entry(header, in); err != nil {
			return account.FromOS(err, "unpack", "'"+header.Name+"'")
		}
	}
}

type unpacker struct {
	root *os.Root
	user account.User
}

func (u *unpacker) entry(h *tar.Header, body io.Reader) error {
	name, err := safeName(h.Name)
	if err != nil || name == "." {
		return err
	}
	if err := u.parents(path.Dir(name)); err != nil {
		return escapes(err)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		err = u.dir(name, h)
	case tar.TypeReg:
		err = u.file(name, h, body)
	case tar.TypeSymlink:
		err = u.symlink(name, h)
	case tar.TypeLink:
		err = u.link(name, h)
	default:
		return fault.New(fault.Invalid, "", "", "only files, folders and links can be unpacked")
	}
	return escapes(err)
}

// safeName refuses what would leave the folder even before os.Root would.
func safeName(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 || path.IsAbs(name) {
		return "", fault.New(fault.Invalid, "", "", "the name is absolute or holds a NUL byte")
	}
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return "", fault.New(fault.Invalid, "", "", `the name holds ".."`)
		}
	}
	return path.Clean(name), nil
}

func (u *unpacker) parents(dir string) error {
	if dir == "." {
		return nil
	}
	info, err := u.root.Stat(dir)
	if err == nil && !info.IsDir() {
		return fault.New(fault.Invalid, "", "", "something that is not a folder is in the way")
	}
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := u.parents(path.Dir(dir)); err != nil {
		return err
	}
	if err := u.root.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return u.own(dir)
}

func (u *unpacker) dir(name string, h *tar.Header) error {
	if err := u.root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := u.root.Lstat(name)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fault.New(fault.Invalid, "", "", "something that is not a folder is in the way")
	}
	if err := u.own(name); err != nil {
		return err
	}
	return u.root.Chmod(name, h.FileInfo().Mode().Perm())
}

func (u *unpacker) file(name string, h *tar.Header, body io.Reader) error {
	if err := u.clear(name); err != nil {
		return err
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	if err == nil {
		err = f.Chown(int(u.user.UID), int(u.user.GID))
	}
	if err == nil {
		err = f.Chmod(h.FileInfo().Mode() &^ fs.ModeType)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return errors.Join(err, u.root.Remove(name))
	}
	return u.root.Chtimes(name, h.ModTime, h.ModTime)
}

// symlink keeps the target as it is: a link may point anywhere, os.Root does not follow it out.
func (u *unpacker) symlink(name string, h *tar.Header) error {
	if err := u.clear(name); err != nil {
		return err
	}
	if err := u.root.Symlink(h.Linkname, name); err != nil {
		return err
	}
	return u.own(name)
}

func (u *unpacker) link(name string, h *tar.Header) error {
	target, err := safeName(h.Linkname)
	if err != nil {
		return err
	}
	if err := u.clear(name); err != nil {
		return err
	}
	return u.root.Link(target, name)
}

// clear removes what a new entry replaces: writing into it would write through a hard link.
func (u *unpacker) clear(name string) error {
	info, err := u.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		return fault.New(fault.Invalid, "", "", "a folder is in the way")
	}
	return u.root.Remove(name)
}

func (u *unpacker) own(name string) error {
	return u.root.Lchown(name, int(u.user.UID), int(u.user.GID))
}

// escapes gives os.Root's refusal its kind; the error has no sentinel.
func escapes(err error) error {
	if err != nil && strings.Contains(err.Error(), "path escapes from parent") {
		return fault.New(fault.Invalid, "", "", "the name leads out of the folder through a symlink")
	}
	return err
}
