// Package files serves GET and POST /files: the contents of files as streams of any size.
//
// An upload goes to a temporary file beside its destination and is renamed over it when
// complete: readers see the old file or the new one, and a client that goes away leaves
// nothing. Uploads belong to the user; parents are made. A file that is replaced keeps its
// mode unless the query gives one (?mode=0755, Roost's addition), a symlink is followed.
package files

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/account"
	"github.com/roosthq/roost/internal/guest/identity"
	"github.com/roosthq/roost/internal/guest/reply"
)

// Handler serves /files.
type Handler struct {
	Users    account.Database
	Identity *identity.Identity
}

// Get streams a file, or a range of it.
func (h Handler) Get(w http.ResponseWriter, r *http.Request) {
	_, path, err := Resolve(r, h.Users, h.Identity)
	if err != nil {
		reply.Error(w, err)
		return
	}
	f, info, err := open(path)
	if err != nil {
		reply.Error(w, err)
		return
	}
	defer func() { _ = f.Close() }()
	w.Header().Set("Content-Disposition", "inline; filename*=UTF-8''"+escape(filepath.Base(path)))
	w.Header().Set("Content-Type", "application/octet-stream")
	if info.Size() == 0 && sendUnsized(w, f) {
		return
	}
	http.ServeContent(w, r, "", info.ModTime(), f)
}

// Resolve finds the user and the path that a request means.
func Resolve(r *http.Request, users account.Database, id *identity.Identity) (account.User, string, error) {
	fallback := id.DefaultUser()
	if name := r.URL.Query().Get("username"); name != "" {
		fallback = name
	}
	user, err := users.FromRequest(r.Header, fallback)
	if err != nil {
		return user, "", err
	}
	path := r.URL.Query().Get("path")
	if path == "" {
		return user, "", nil
	}
	path, err = user.Resolve(path)
	return user, path, err
}

// open opens a regular file; O_NONBLOCK, since opening a FIFO would wait for its writer.
func open(path string) (*os.File, os.FileInfo, error) {
	if path == "" {
		return nil, nil, fault.New(fault.Invalid, "read", "file", "the path is missing")
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, account.FromOS(err, "read", path)
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = fault.New(fault.Invalid, "read", path, "it is a directory")
	} else if err == nil && !info.Mode().IsRegular() {
		err = fault.New(fault.Invalid, "read", path, "it is not a regular file")
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, account.FromOS(err, "read", path)
	}
	return f, info, nil
}

// sendUnsized sends a file of /proc or /sys, which says that it has no bytes and has some.
func sendUnsized(w http.ResponseWriter, f *os.File) bool {
	first := make([]byte, 4096)
	n, err := f.Read(first)
	if n == 0 || err != nil {
		return false
	}
	if _, err := w.Write(first[:n]); err == nil {
		_, _ = io.Copy(w, f)
	}
	return true
}

// mode reads ?mode=0755; ok is false without one.
func mode(r *http.Request) (os.FileMode, bool, error) {
	text := r.URL.Query().Get("mode")
	if text == "" {
		return 0, false, nil
	}
	bits, err := strconv.ParseUint(text, 8, 12)
	if err != nil {
		return 0, false, fault.New(fault.Invalid, "read", "mode", "'"+text+"' is not octal permission bits such as 0644")
	}
	return os.FileMode(bits).Perm(), true, nil
}

// escape encodes a name for a header (RFC 5987): everything but letters and digits and "-._".
func escape(name string) string {
	const hex = "0123456789ABCDEF"
	out := make([]byte, 0, len(name))
	for _, c := range []byte(name) {
		plain := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_'
		if plain {
			out = append(out, c)
		} else {
			out = append(out, '%', hex[c>>4], hex[c&15])
		}
	}
	return string(out)
}
