package filesystem

import (
	"errors"
	"os"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/account"
)

func moveError(err error, source, destination string) error {
	var link *os.LinkError
	if errors.As(err, &link) {
		err = link.Err
	}
	object := source + " to " + destination
	if errors.Is(err, syscall.EXDEV) {
		return fault.New(fault.FailedPrecondition, "move", object, "they are on different file systems").
			WithHint("Copy it and remove the original.")
	}
	return account.FromOS(err, "move", object)
}
