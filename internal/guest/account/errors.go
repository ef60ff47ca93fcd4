package account

import (
	"errors"
	"io/fs"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
)

// kinds says what a failed system call on a path means to its caller.
var kinds = []struct {
	is   error
	kind fault.Kind
}{
	{fs.ErrNotExist, fault.NotFound},
	{fs.ErrExist, fault.AlreadyExists},
	{fs.ErrPermission, fault.PermissionDenied},
	{syscall.ENOTDIR, fault.Invalid},
	{syscall.EISDIR, fault.Invalid},
	{syscall.ENAMETOOLONG, fault.Invalid},
	{syscall.EINVAL, fault.Invalid},
	{syscall.ELOOP, fault.Invalid},
	{syscall.ENOTEMPTY, fault.FailedPrecondition},
	{syscall.ETXTBSY, fault.FailedPrecondition},
	{syscall.EROFS, fault.PermissionDenied},
	{syscall.ENOSPC, fault.ResourceExhausted},
	{syscall.EDQUOT, fault.ResourceExhausted},
	{syscall.EMFILE, fault.ResourceExhausted},
	{syscall.ENFILE, fault.ResourceExhausted},
	{syscall.ENOMEM, fault.ResourceExhausted},
	{syscall.EAGAIN, fault.ResourceExhausted},
	{syscall.E2BIG, fault.Invalid},
}

// FromOS gives a system error its kind, an operation and an object. A nil err gives nil; an
// error that has a kind keeps it.
func FromOS(err error, op, object string) error {
	if err == nil {
		return nil
	}
	if fault.KindOf(err) != fault.Internal {
		return fault.Wrap(err, op, object)
	}
	kind := fault.Internal
	for _, k := range kinds {
		if errors.Is(err, k.is) {
			kind = k.kind
			break
		}
	}
	return &fault.Error{Kind: kind, Op: op, Object: object, Err: cause(err)}
}

// cause drops the "open /a/b:" of os errors: the operation and object say it already.
func cause(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
