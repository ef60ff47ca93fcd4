package files

import (
	"compress/gzip"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/account"
	"github.com/roosthq/roost/internal/guest/reply"
)

// written is one element of the answer to an upload.
type written struct {
	Path string `json:"path"`
	Name string `json:"name"`
	Type string `json:"type"`
}

// upload is one POST /files.
type upload struct {
	user    account.User
	path    string // from the query; may be empty for multipart
	mode    os.FileMode
	hasMode bool
	done    []written
}

// Post stores a body, or the parts of a form named "file".
func (h Handler) Post(w http.ResponseWriter, r *http.Request) {
	done, err := h.store(r)
	if err != nil {
		reply.Error(w, err)
		return
	}
	reply.JSON(w, http.StatusOK, done)
}

func (h Handler) store(r *http.Request) ([]written, error) {
	user, path, err := Resolve(r, h.Users, h.Identity)
	if err != nil {
		return nil, err
	}
	u := upload{user: user, path: path}
	if u.mode, u.hasMode, err = mode(r); err != nil {
		return nil, err
	}
	body, err := decoded(r)
	if err != nil {
		return nil, err
	}
	kind, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if kind == "multipart/form-data" {
		err = u.form(multipart.NewReader(body, params["boundary"]))
	} else {
		err = u.raw(body)
	}
	return u.done, err
}

func (u *upload) raw(body io.Reader) error {
	if u.path == "" {
		return fault.New(fault.Invalid, "write", "file", "the path is missing")
	}
	return u.write(u.path, body)
}

func (u *upload) form(form *multipart.Reader) error {
	for {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fault.New(fault.Invalid, "read", "multipart body", err.Error())
		}
		if part.FormName() != "file" {
			continue
		}
		path, err := u.destination(part)
		if err != nil {
			return err
		}
		if err := u.write(path, part); err != nil {
			return err
		}
	}
	if len(u.done) == 0 {
		return fault.New(fault.Invalid, "read", "multipart body", `it has no part named "file"`)
	}
	return nil
}

// destination is the query's path, or the part's full file name: Part.FileName would drop its
// directories.
func (u *upload) destination(part *multipart.Part) (string, error) {
	path := u.path
	if path == "" {
		_, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
		if err != nil || params["filename"] == "" {
			return "", fault.New(fault.Invalid, "read", "multipart body", "a file part has no name and the path is missing")
		}
		if path, err = u.user.Resolve(params["filename"]); err != nil {
			return "", err
		}
	}
	for _, w := range u.done {
		if w.Path == path {
			return "", fault.New(fault.Invalid, "write", path, "the upload names it twice")
		}
	}
	return path, nil
}

func (u *upload) write(path string, body io.Reader) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return fault.New(fault.Invalid, "write", path, "it is a directory")
	case err == nil && !info.Mode().IsRegular():
		err = through(path, body)
	case err == nil:
		err = u.replace(path, info.Mode().Perm(), body)
	default:
		err = u.replace(path, 0o644, body)
	}
	if err != nil {
		return account.FromOS(err, "write", path)
	}
	u.done = append(u.done, written{Path: path, Name: filepath.Base(path), Type: "file"})
	return nil
}

// through writes into a device or FIFO, which a rename would destroy.
func through(path string, body io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	return errors.Join(err, f.Close())
}

// replace writes a temporary file beside path and renames it over path.
func (u *upload) replace(path string, mode os.FileMode, body io.Reader) error {
	if u.hasMode {
		mode = u.mode
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if err := u.user.MkdirAll(filepath.Dir(path)); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".roost-upload-*")
	if err != nil {
		return err
	}
	err = u.fill(f, mode, body)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

func (u *upload) fill(f *os.File, mode os.FileMode, body io.Reader) error {
	_, err := io.Copy(f, body)
	if err == nil {
		err = f.Chown(int(u.user.UID), int(u.user.GID))
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// decoded undoes Content-Encoding: gzip.
func decoded(r *http.Request) (io.Reader, error) {
	switch encoding := r.Header.Get("Content-Encoding"); encoding {
	case "", "identity":
		return r.Body, nil
	case "gzip":
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, fault.New(fault.Invalid, "read", "gzip body", err.Error())
		}
		return z, nil
	default:
		return nil, fault.New(fault.Invalid, "read", "body", "Content-Encoding "+encoding+" is not supported; use gzip or none")
	}
}
