package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// insideCommand is what this program starts itself as to run another in a network namespace: PATH PROGRAM ARGUMENT…
// Its mount namespace was made for it already, and is private.
const insideCommand = "inside"

// runInside enters the namespace, shows it in /sys, where programs look for devices, keeps control groups where they
// were, and becomes the program.
func runInside(args []string) error {
	if len(args) < 2 {
		return errors.New("inside: give it a namespace and a program")
	}
	runtime.LockOSThread()
	ns, err := os.Open(args[0])
	if err != nil {
		return err
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", args[0], err)
	}
	const groups = "/sys/fs/cgroup"
	tree, err := unix.OpenTree(unix.AT_FDCWD, groups, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("clone mounts at %s: %w", groups, err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, groups, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach mounts at %s: %w", groups, err)
	}
	return unix.Exec(args[1], args[1:], os.Environ())
}
