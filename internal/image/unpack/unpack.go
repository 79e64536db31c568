// Package unpack reads what users upload as images. It runs in the sandbox only, and writes below its work directory:
//
//	upload        what was uploaded (the parent's); or
//	archive/      an OCI layout (the parent's, from a registry)
//	tree/         a root tree, when that is what it was
//	disk.qcow2    a disk, rewritten by qemu-img, when it was a qcow2
//
// A raw disk and an ISO stay what they are: the upload, once it was looked at.
package unpack

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/internal/image/sandbox"
)

// Command is the hidden command of the program that runs Main in the sandbox.
const Command = "sandbox-unpack"

// Job is what to do, as the parent tells the child.
type Job struct {
	Limit    api.Bytes `json:"limit"`    // most bytes to unpack to
	Room     api.Bytes `json:"room"`     // the same, for want of room on the host; a disk is told by Limit alone, as most are sparse
	Files    int       `json:"files"`    // most files to unpack
	Registry bool      `json:"registry"` // archive/ is there, instead of upload
}

// most is the most bytes that a tree may take.
func (j Job) most() api.Bytes { return min(j.Limit, j.Room) }

// Result is what the child tells the parent.
type Result struct {
	Format  string    `json:"format,omitempty"` // tree, qcow2, raw, iso, oci
	App     *api.App  `json:"app,omitempty"`
	Virtual api.Bytes `json:"virtual,omitempty"` // size of the disk
	Bad     string    `json:"bad,omitempty"`     // why it is no image
	Large   bool      `json:"large,omitempty"`   // what it unpacks to is more than Limit or Room
	Full    bool      `json:"full,omitempty"`    // the host's file system is full
	Failure string    `json:"failure,omitempty"` // what went wrong here, not with the image
}

// Names in the work directory.
const (
	UploadName  = "upload"
	ArchiveName = "archive"
	TreeName    = "tree"
	DiskName    = "disk.qcow2"
)

// badError is a reason to refuse the upload.
type badError struct {
	reason string
	large  bool
}

func (e badError) Error() string { return e.reason }

func bad(format string, args ...any) error { return badError{reason: fmt.Sprintf(format, args...)} }

// tooLarge is bad for an archive that unpacks to more than it may.
func tooLarge(format string, args ...any) error {
	return badError{reason: fmt.Sprintf(format, args...), large: true}
}

// Main is the child: it confines itself, does the job in args[0], and prints the result. It returns the exit code.
func Main(args []string) int {
	if err := sandbox.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var job Job
	if len(args) != 1 || json.Unmarshal([]byte(args[0]), &job) != nil {
		fmt.Fprintln(os.Stderr, "no job")
		return 2
	}
	// The modes of files are the archive's to tell.
	unix.Umask(0)
	if err := json.NewEncoder(os.Stdout).Encode(report(do(sandbox.Work, job))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// report parts what is wrong with the image from what is wrong here.
func report(r Result, err error) Result {
	var reason badError
	switch {
	case err == nil:
		return r
	case errors.As(err, &reason):
		return Result{Bad: err.Error(), Large: reason.large}
	case errors.Is(err, unix.EFBIG):
		return Result{Bad: "it holds a file larger than the limit"}
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return Result{Full: true, Failure: err.Error()}
	default:
		return Result{Failure: err.Error()}
	}
}

// do looks at the upload and unpacks it below dir.
func do(dir string, job Job) (Result, error) {
	if job.Registry {
		return unpackOCI(dir, filepath.Join(dir, ArchiveName), job)
	}
	file, err := os.Open(filepath.Join(dir, UploadName))
	if err != nil {
		return Result{}, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return Result{}, err
	}
	kind, err := sniff(file, st.Size())
	if err != nil {
		return Result{}, err
	}
	switch kind {
	case kindQcow2:
		return convertQcow2(dir, file, job)
	case kindRaw:
		return Result{Format: "raw", Virtual: api.Bytes(st.Size())}, checkRaw(file, st.Size())
	case kindISO:
		return Result{Format: "iso"}, checkISO(file, st.Size())
	default:
		return unpackArchive(dir, file, job)
	}
}
