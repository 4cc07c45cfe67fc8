#!/bin/sh
# Works with git in a directory; a line for each step.
cd "$1" || exit 1
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
export GIT_CONFIG_GLOBAL="$PWD/config" GIT_CONFIG_SYSTEM=/dev/null
failed=0

step() {
    name=$1
    shift
    if words=$("$@" 2>&1); then
        echo "ok $name"
    else
        echo "not ok $name: $(echo "$words" | tr '\n' ' ' | tail -c 200)"
        failed=1
    fi
}

grow() {
    for number in $(seq "$1" "$2"); do
        mkdir -p "d$((number % 7))/e" && head -c $((number * 331 % 9000)) /dev/urandom > "d$((number % 7))/e/f$number" || return 1
    done
}

commit() { git add -A && git commit -q -m "$1"; }
is_clean() { [ -z "$(git status --porcelain)" ]; }
is_whole() { [ -z "$(git fsck --full --strict 2>&1 | grep -v '^dangling' | grep -v '^notice')" ]; }

git config --global init.defaultBranch main
git config --global safe.directory '*'
git config --global merge.directoryRenames false
step "init" git init -q one
cd one || exit 1
step "symlinks and modes are seen" sh -c '[ "$(git config core.symlinks)" != false ] && [ "$(git config core.filemode)" = true ]'
step "files" grow 1 60
ln -s d1/e link
echo 'exit 0' > run && chmod 755 run
step "commit" commit first
step "clean" is_clean
step "mode kept" sh -c 'git ls-files -s run | grep -q ^100755'
step "link kept" sh -c 'git ls-files -s link | grep -q ^120000'
chmod 644 run
step "chmod is seen" sh -c 'git status --porcelain | grep -q "M run"'
step "checkout of modes" git checkout -q run
step "branch" git checkout -q -b side
step "more files" grow 61 90
step "commit on a branch" commit side
step "move of a directory" git mv d1 moved
step "commit of a move" commit moved
step "back" git checkout -q main
step "main goes on" grow 91 110
step "commit on main" commit main
step "merge" git merge -q -m merge side
step "rebase" sh -c 'git checkout -q -b again side && grow() { :; } && echo x > x && git add x && git commit -q -m x && git rebase -q main'
step "worktree" git worktree add -q ../tree side
step "worktree is clean" sh -c 'cd ../tree && [ -z "$(git status --porcelain)" ]'
step "worktree removed" git worktree remove ../tree
step "stash" sh -c 'echo y >> x && git stash -q && git stash pop -q'
step "reset" git reset -q --hard
step "tags" sh -c 'for n in $(seq 40); do git tag t$n || exit 1; done'
step "refs packed" git pack-refs --all
step "repack" git repack -q -a -d
step "whole" is_whole
step "clone by links" git clone -q . ../two
step "objects of a clone are links" sh -c 'f=$(ls ../two/.git/objects/pack/*.pack) && [ "$(stat -c %h "$f")" = 2 ]'
step "clone by protocol" git clone -q --no-local . ../three
step "shared clone" git clone -q --shared . ../four
step "push" sh -c 'cd ../three && git checkout -q -b pushed && echo z > z && git add z && git commit -q -m z && git push -q origin pushed'
step "bundle" sh -c 'git bundle create -q ../b main && git clone -q ../b ../five'
step "archive" sh -c 'git archive -o ../a.tar HEAD && tar tf ../a.tar > /dev/null'
step "gc" git gc -q --prune=now
step "whole after gc" is_whole
step "untracked cache" git update-index --test-untracked-cache
step "index of two versions" sh -c 'git update-index --split-index && [ -z "$(git status --porcelain)" ]'
step "bisect" sh -c 'git bisect start HEAD HEAD~1 && git bisect run sh run; git bisect reset'
cd .. || exit 1
step "removed" rm -rf one two three four five
exit $failed
